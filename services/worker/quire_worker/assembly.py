"""Puts a runner together for a device: buffers, a cache sized by what a step was measured to need, captured steps."""

import torch

from quire.config import WorkerConfig
from quire.errors import ConfigError
from quire_worker.device_batch import DeviceBatch
from quire_worker.device_step import DeviceStep
from quire_worker.grammar_compiler import GrammarCompiler
from quire_worker.kv_cache import CacheShape, allocate_cache, num_cache_blocks
from quire_worker.model.config import ModelConfig
from quire_worker.model.decoder import Decoder
from quire_worker.progress import Progress
from quire_worker.runner import Runner
from quire_worker.slot_grammar import SlotGrammars
from quire_worker.slot_table import SlotTable
from quire_worker.step_graph import ANY_CHANGES, StepGraphs
from quire_worker.step_shape import ShapeTable, StepShape
from quire_worker.trial_step import measured_step_bytes

_EAGER_HOST_US_PER_LAYER = 400
"""Host time of one eagerly launched layer, measured on the host of an H200."""

_MATRIX_FLOP_PER_US = 700e6
"""Rate at which a large step computes there."""


def build_runner(
    decoder: Decoder,
    cache: CacheShape,
    config: WorkerConfig,
    max_model_len: int,
    device: torch.device,
    compiler: GrammarCompiler,
) -> tuple[Runner, int]:
    """The runner and the number of its KV blocks. Raises `ConfigError` when steps or cache do not fit."""
    max_blocks = -(-max_model_len // cache.block_size)
    try:
        batch = DeviceBatch(
            max_num_seqs=config.max_num_seqs,
            max_num_tokens=config.step_token_limit,
            max_blocks=max_blocks,
            vocab_size=cache.model.vocab_size,
            device=device,
        )
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"--max-num-seqs={config.max_num_seqs}: the device has no room for what is kept of so many sequences of "
            f"--max-model-len={max_model_len} and steps of {config.step_token_limit} tokens: {error}",
            field="max_num_seqs",
        ) from error

    def step_over(num_blocks: int) -> DeviceStep:
        return DeviceStep(
            decoder,
            allocate_cache(cache, num_blocks, device),
            batch,
            max_num_seqs=config.max_num_seqs,
        )

    is_cuda = device.type == "cuda"
    shapes = shape_table(cache.model, config, max_model_len) if is_cuda else None
    step_bytes = (
        measured_step_bytes(step_over(1), largest_shape(config, max_model_len), config) if is_cuda else 0
    )
    num_blocks = num_cache_blocks(cache, config, max_model_len, device, step_bytes=step_bytes)
    step = step_over(num_blocks)
    slots = SlotTable(
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=cache.block_size,
        vocab_size=cache.model.vocab_size,
    )
    graphs = _captured(step, shapes) if shapes is not None and not config.enforce_eager else None
    grammars = SlotGrammars(compiler, cache.model.vocab_size)
    return Runner(step, slots, grammars, shapes, graphs), num_blocks


def graph_token_limit(model: ModelConfig) -> int:
    """Tokens from which on a step computes for at least twice as long as its eager launch takes."""
    per_layer = model.hidden_size * (2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size)
    tokens = 2 * _EAGER_HOST_US_PER_LAYER * _MATRIX_FLOP_PER_US / (2 * per_layer)
    return int(tokens)


def shape_table(model: ModelConfig, config: WorkerConfig, max_model_len: int) -> ShapeTable:
    """The shapes of the steps of a device that captures them, or pads them at least."""
    limit = 0 if config.enforce_eager else graph_token_limit(model)
    return ShapeTable(config.max_num_seqs, config.step_token_limit, max_model_len, limit)


def largest_shape(config: WorkerConfig, max_model_len: int) -> StepShape:
    """No step needs more memory."""
    return StepShape(config.step_token_limit, config.max_num_seqs, False, max_model_len)


def _captured(step: DeviceStep, shapes: ShapeTable) -> StepGraphs:
    forwards, draws = shapes.captured(), shapes.captured_rows()
    report = Progress("capturing steps", 1 + len(forwards) + len(draws)).note_done
    graphs = StepGraphs()

    def load_rows(num_rows: int) -> None:
        step.batch.load_padding(StepShape(num_rows, num_rows, True, 1))

    def enter_changes(_: int) -> None:
        step.batch.enter_loaded()

    graphs.changes.capture([ANY_CHANGES], lambda _: None, enter_changes, enter_changes, report)
    graphs.forwards.capture(forwards, step.batch.load_padding, step.shallow().forward, step.forward, report)
    graphs.draws.capture(draws, load_rows, step.draw, step.draw, report)
    return graphs
