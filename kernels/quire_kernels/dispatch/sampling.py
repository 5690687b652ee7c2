"""Which implementation draws tokens, forbids some of them, and says how likely they were."""

from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.sampling import cpu as sampling_cpu
from quire_kernels.sampling import logprobs
from quire_kernels.sampling import reference as sampling_reference
from quire_kernels.sampling.params import Penalties, SamplingTensors


def sample(
    logits: Tensor, params: SamplingTensors, draws: Tensor | None = None, penalties: Penalties | None = None
) -> Tensor:
    """Draw as `sampling.reference` does, after the ``penalties``, for rows of ``draws`` (int32 ``[R]``) that are not 0.

    The tokens of other rows are 0 on a GPU, where they cost nothing, and mean nothing anywhere. What is drawn is entered
    into the occurrences and the forbidden words of the row's slot; a row of which every token is forbidden draws
    `NO_TOKEN_LEFT`, which is entered nowhere. On a GPU the launches depend on shapes alone.
    """
    if device.runs_triton(logits):
        from quire_kernels.sampling.gumbel import sample_gumbel

        return sample_gumbel(logits, params, draws, penalties)
    penalties = penalties or None
    if penalties is not None:
        logits = sampling_reference.penalise(logits, penalties)
    sampler = sampling_cpu if logits.device.type == "cpu" else sampling_reference
    tokens = sampler.sample(logits, params)
    if penalties is not None:
        drawing = draws.tolist() if draws is not None else [1] * len(params)
        for slot, token, draw in zip(penalties.slots.tolist(), tokens.tolist(), drawing, strict=True):
            if draw and token >= 0:
                penalties.occurrences.count(slot, token)
                penalties.biases.note_drawn(slot, token)
    return tokens


def apply_token_bitmask(logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    if device.runs_triton(logits):
        from quire_kernels.sampling.bitmask import apply_token_bitmask as apply

        apply(logits, rows, bitmask)
    else:
        sampling_reference.apply_token_bitmask(logits, rows, bitmask)


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return logprobs.token_logprobs(logits, tokens, num_top)


def likeliest_tokens(logits: Tensor, temperature: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    return logprobs.likeliest_tokens(logits, temperature, num_top)
