"""The cases by name: what each runs on, which model it needs and what measures it."""

from dataclasses import dataclass
from enum import Enum

from benchmarks.gpu.model import LLAMA_3_1_8B, MISTRAL_7B, QWEN2_5_7B, QWEN3_0_6B, Model
from benchmarks.gpu.result import SAMPLED


class Place(Enum):
    """What a case runs on; cases of one place and model share a process and a loaded model."""

    WORKER = "worker"
    STACK = "stack"
    START = "start"
    PEER = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of the command line."""

    place: Place
    model: Model
    title: str
    """How its rows are named."""
    measure: str
    """The method of the place's cases that is given the title; named, because importing them imports torch."""


def _worker(model: Model, title: str, measure: str) -> Case:
    return Case(place=Place.WORKER, model=model, title=title, measure=measure)


def _stack(model: Model, title: str, measure: str) -> Case:
    return Case(place=Place.STACK, model=model, title=title, measure=measure)


def _peer(model: Model, title: str, measure: str) -> Case:
    return Case(place=Place.PEER, model=model, title=title, measure=measure)


CASES: dict[str, Case] = {
    "A": _worker(QWEN3_0_6B, "A (Qwen3-0.6B)", "uniform"),
    "A-sampled": _worker(QWEN3_0_6B, "A (Qwen3-0.6B)" + SAMPLED, "sampled"),
    "B": _worker(QWEN3_0_6B, "B (Qwen3-0.6B)", "chat"),
    "C": _worker(LLAMA_3_1_8B, "C (Llama-3.1-8B)", "chat_warmed"),
    "D": _worker(LLAMA_3_1_8B, "D (Llama-3.1-8B)", "single"),
    "E": _worker(LLAMA_3_1_8B, "E (Llama-3.1-8B)", "prefill"),
    "S": _worker(LLAMA_3_1_8B, "S (Llama-3.1-8B)", "structured"),
    "S-qwen3": _worker(QWEN3_0_6B, "S (Qwen3-0.6B)", "structured"),
    "long-context": _worker(LLAMA_3_1_8B, "Decode (Llama-3.1-8B)", "long_context"),
    "cached-prompt": _worker(LLAMA_3_1_8B, "Cached prompt (Llama-3.1-8B)", "cached_prompt"),
    "C-mistral": _worker(MISTRAL_7B, "C (Mistral-7B)", "chat_warmed"),
    "D-mistral": _worker(MISTRAL_7B, "D (Mistral-7B)", "single"),
    "E-mistral": _worker(MISTRAL_7B, "E (Mistral-7B)", "prefill"),
    "C-qwen2.5": _worker(QWEN2_5_7B, "C (Qwen2.5-7B)", "chat_warmed"),
    "D-qwen2.5": _worker(QWEN2_5_7B, "D (Qwen2.5-7B)", "single"),
    "E-qwen2.5": _worker(QWEN2_5_7B, "E (Qwen2.5-7B)", "prefill"),
    "B-front-door": _stack(QWEN3_0_6B, "B (Qwen3-0.6B)", "chat"),
    "B-http": _stack(QWEN3_0_6B, "B (Qwen3-0.6B)", "chat_http"),
    "C-front-door": _stack(LLAMA_3_1_8B, "C (Llama-3.1-8B)", "chat"),
    "C-http": _stack(LLAMA_3_1_8B, "C (Llama-3.1-8B)", "chat_http"),
    "C-poisson": _stack(LLAMA_3_1_8B, "C (Llama-3.1-8B)", "poisson"),
    "S-front-door": _stack(LLAMA_3_1_8B, "S (Llama-3.1-8B)", "structured"),
    "S-qwen3-front-door": _stack(QWEN3_0_6B, "S (Qwen3-0.6B)", "structured"),
    "start": Case(place=Place.START, model=LLAMA_3_1_8B, title="Start (Llama-3.1-8B)", measure="start"),
    "A-peer": _peer(QWEN3_0_6B, "A (Qwen3-0.6B)", "uniform"),
    "C-peer": _peer(LLAMA_3_1_8B, "C (Llama-3.1-8B)", "chat"),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "worker": ("A", "A-sampled", "B", "C", "D", "E", "long-context", "cached-prompt"),
    "front-door": ("B-front-door", "B-http", "C-front-door", "C-http", "C-poisson"),
    "structured": ("S", "S-qwen3", "S-front-door", "S-qwen3-front-door"),
    "start-and-peer": ("start", "A-peer", "C-peer"),
    "other-shapes": ("C-mistral", "D-mistral", "E-mistral", "C-qwen2.5", "D-qwen2.5", "E-qwen2.5"),
}
"""The suite in five commands, each of at most nine minutes on one NVIDIA H200."""
