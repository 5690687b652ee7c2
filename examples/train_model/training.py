"""The training loop: AdamW on random windows, an averaged copy of the weights, and the best average kept.

It knows models, windows and a scoring function; it does not know files, text or tokenizers.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import torch
from llama import LlamaForCausalLM
from torch import Tensor
from torch.nn import functional
from window_sampler import WindowSampler

CANONICAL_FROM = 0.7  # of the schedule: from here on no randomly segmented windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how hard to train. `time_limit_s` shortens the schedule; it never cuts it off."""

    num_steps: int = 1700
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    average_decay: float = 0.998
    variant_share: float = 0.5
    evaluate_every: int = 100
    time_limit_s: float = math.inf

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return how far training is, from 0 to 1, by steps or by time, whichever is further."""
        return min(1.0, max(step / self.num_steps, elapsed_s / self.time_limit_s))

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate: linear warm-up, then a cosine down to a fiftieth."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """The averaged weights with the lowest score, and the step that reached it of `num_steps` done."""

    weights: dict[str, Tensor]
    score: float
    best_step: int
    num_steps: int


def train(
    model: LlamaForCausalLM,
    sampler: WindowSampler,
    schedule: Schedule,
    score: Callable[[LlamaForCausalLM], float],
    report: Callable[[str], None],
) -> TrainedWeights:
    """Train `model` in place and return the best exponential moving average of its weights.

    `score` is asked every `evaluate_every` steps and at the end; lower is better. This is early stopping: the
    schedule runs out, the best average counts.
    """
    device = next(model.parameters()).device
    optimizer = _optimizer(model, schedule)
    averaged = LlamaForCausalLM(model.shape).to(device)
    averaged.load_state_dict(model.state_dict())
    best = TrainedWeights({}, math.inf, 0, 0)
    began, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, progress)
        loss = _step(model, optimizer, sampler, schedule, progress)
        _average(averaged, model, min(schedule.average_decay, (1 + step) / (10 + step)))
        step += 1
        progress = schedule.progress(step, time.monotonic() - began)
        if step % schedule.evaluate_every == 0 or progress >= 1.0:
            scored = score(averaged)
            report(
                f"step {step} loss {float(loss):.3f} held-out {scored:.4f} at {time.monotonic() - began:.0f} s"
            )
            if scored < best.score:
                best = TrainedWeights(_copied_weights(averaged), scored, step, step)
    return dataclasses.replace(best, num_steps=step)


def _optimizer(model: LlamaForCausalLM, schedule: Schedule) -> torch.optim.AdamW:
    """Decay matrices, not the gains of the norms."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.99), fused=True)


def _step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    sampler: WindowSampler,
    schedule: Schedule,
    progress: float,
) -> Tensor:
    share = schedule.variant_share if progress < CANONICAL_FROM else 0.0
    inputs, targets = sampler.draw(schedule.batch_size, variant_share=share)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.is_cuda):
        logits = model(inputs)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _average(averaged: LlamaForCausalLM, model: LlamaForCausalLM, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def _copied_weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
