"""The one place where an operation is given its implementation, by device, capability and shape.

Every function has the contract of the reference of the same name, whose docstring describes it. Nothing here
synchronises with the device or looks at values. Triton is imported only when a tensor on a GPU asks for it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from quire_kernels.activation import cpu as activation_cpu
from quire_kernels.attention import cpu as attention_cpu
from quire_kernels.attention import reference as attention_reference
from quire_kernels.attention.new_tokens import NewTokens
from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.blocks import reference as blocks_reference
from quire_kernels.linear import cpu as linear_cpu
from quire_kernels.linear.library import multiply_by_table
from quire_kernels.linear.tiling import MANY_ROWS
from quire_kernels.linear.tuning import BetweenConfig, between_config, suits_few_rows, suits_tiles
from quire_kernels.norm import cpu as norm_cpu
from quire_kernels.norm import reference as norm_reference
from quire_kernels.rotary import reference as rotary_reference
from quire_kernels.sampling import cpu as sampling_cpu
from quire_kernels.sampling import logprobs
from quire_kernels.sampling import reference as sampling_reference
from quire_kernels.sampling.params import Penalties, SamplingTensors
from quire_kernels.slots import reference as slots_reference
from quire_kernels.slots.state import MaskedStops, SlotState, StepRows, StepTensors


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


def _runs_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and _triton_is_installed()


def attention_implementation(device: torch.device) -> str:
    """The module that attends on tensors of `device`."""
    if device.type == "cuda" and _triton_is_installed():
        return "quire_kernels.attention.paged (Triton)"
    return (attention_cpu if device.type == "cpu" else attention_reference).__name__


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if _runs_triton(x):
        from quire_kernels.norm.rows import rms_norm_rows

        return rms_norm_rows(x, weight, eps)
    return norm_cpu.rms_norm(x, weight, eps)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if _runs_triton(x):
        from quire_kernels.norm.rows import fused_add_rms_norm_rows

        return fused_add_rms_norm_rows(x, residual, weight, eps)
    return norm_reference.fused_add_rms_norm(x, residual, weight, eps)


def silu_and_mul(x: Tensor) -> Tensor:
    if _runs_triton(x):
        from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles

        return silu_and_mul_tiles(x)
    return activation_cpu.silu_and_mul(x)


def rotary_embedding(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    if _runs_triton(q):
        from quire_kernels.rotary.heads import rotary_embedding_heads

        return rotary_embedding_heads(q, k, cos_sin, positions)
    return rotary_reference.rotary_embedding(q, k, cos_sin, positions)


def rotary_embedding_and_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    if _runs_triton(q):
        from quire_kernels.rotary.heads import rotary_embedding_cache

        implementation = rotary_embedding_cache
    else:
        implementation = rotary_reference.rotary_embedding_and_cache
    return implementation(
        q,
        k,
        v,
        cos_sin,
        positions,
        k_cache,
        v_cache,
        slot_mapping,
        q_norm_weight,
        k_norm_weight,
        eps,
        k_scale,
        v_scale,
    )


def schedule_prefill(
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    sliding_window: int | None,
    dtype: torch.dtype = torch.bfloat16,
    k_cache: Tensor | None = None,
) -> PrefillSchedule | None:
    """Cut the prefill attention of a step into equal work, once for all layers that share ``sliding_window``.

    ``query_start_loc [R + 1]`` and ``seq_lens [R]`` are those of the step, which may end in rows of padding without a
    query token; ``num_tokens`` is the padded number of query tokens, ``dtype`` the type of q, and ``k_cache``
    the keys of one of these layers, whose shape and type help to choose the kernel. One launch that depends on R and
    ``num_tokens`` alone and can be captured in a CUDA graph. Returns None where attention takes no schedule.
    """
    if not _runs_triton(seq_lens):
        return None
    from quire_kernels.attention import paged

    return paged.schedule_prefill(
        query_start_loc,
        seq_lens,
        num_tokens=num_tokens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        sliding_window=sliding_window,
        dtype=dtype,
        k_cache=k_cache,
    )


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None,
    max_query_len: int,
    max_seq_len: int,
    schedule: PrefillSchedule | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Attend as `attention.reference` does, over tables that may be padded by rows without a query token.

    The caches may be of another type than q (8 bits to hold twice as much); keys are what they hold times ``k_scale``,
    values times ``v_scale``.

    The launches depend on the shapes of the tensors, on whether ``max_query_len`` is 1 (such a step takes no
    ``schedule``) and on ``max_seq_len``.
    """
    tensors = (q, k_cache, v_cache, block_tables, query_start_loc, seq_lens)
    if _runs_triton(q):
        from quire_kernels.attention.paged import paged_attention_mixed

        return paged_attention_mixed(
            *tensors,
            scale=scale * k_scale,
            sliding_window=sliding_window,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            schedule=schedule,
            v_scale=v_scale,
        )
    on_cpu = q.device.type == "cpu"
    out = (attention_cpu if on_cpu else attention_reference).paged_attention(
        *tensors,
        scale=scale * k_scale,
        sliding_window=sliding_window,
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
    )
    return out if v_scale == 1.0 else out.mul_(v_scale)


def rotary_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
    scale: float,
    sliding_window: int | None,
    max_seq_len: int,
    settled: bool = False,
) -> Tensor:
    """Do `rotary_embedding_and_cache` and `paged_attention` of a decode step, in one launch where a kernel can.

    Tables may be padded as those of `paged_attention`; the one launch is for as many tokens as rows, where row i has token i
    and those behind the last sequence have none. Keys and values of tokens that no row has may or may not be cached.

    With ``settled`` the caller promises that an ordinary launch, one that starts when all before it have ended, lies between
    the last one that wrote ``positions``, ``slot_mapping``, the tables, lengths or earlier keys, and this one. Launches that
    overlap start in the order of the stream, so that all of this was written before the kernel starts, and it reads it
    before the launch that makes q, k and v has ended.
    """
    new_tokens = NewTokens(
        k=k,
        v=v,
        cos_sin=cos_sin,
        positions=positions,
        slot_mapping=slot_mapping,
        q_norm_weight=q_norm_weight,
        k_norm_weight=k_norm_weight,
        eps=eps,
        settled=settled,
    )
    tables = (block_tables, query_start_loc, seq_lens)
    if _runs_triton(q):
        from quire_kernels.attention import paged

        if paged.rotates_on_the_way(q, k_cache, v_cache, seq_lens.shape[0], new_tokens):
            return paged.paged_attention_mixed(
                q,
                k_cache,
                v_cache,
                *tables,
                scale=scale,
                sliding_window=sliding_window,
                max_query_len=1,
                max_seq_len=max_seq_len,
                new_tokens=new_tokens,
            )
    rotated = rotary_embedding_and_cache(
        q, k, v, cos_sin, positions, k_cache, v_cache, slot_mapping, q_norm_weight, k_norm_weight, eps
    )
    return paged_attention(
        rotated,
        k_cache,
        v_cache,
        *tables,
        scale=scale,
        sliding_window=sliding_window,
        max_query_len=1,
        max_seq_len=max_seq_len,
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Project ``x [T, K]`` by ``weight [N, K]``, into ``out [T, N]`` where it is given: by our kernels for one row,
    for few, for some hundred and for many rows of 16-bit data, by oneDNN for packed weights, else by the library, with an
    algorithm of the table where it has one.
    """
    if ours := _our_product(x, weight, bias):
        return ours(x, weight, bias, out=out)
    if out is None and (ours := _many_rows_product(x, weight, bias)):
        return ours(x, weight)
    if weight.is_mkldnn:
        product = linear_cpu.linear_packed(x, weight, bias)
        return product if out is None else out.copy_(product)
    if out is None:
        if bias is not None or not _may_use_table(x):
            return torch.nn.functional.linear(x, weight, bias)
        out = x.new_empty((x.shape[0], weight.shape[0]))
    _multiply(x, weight, out)
    return out if bias is None else out.add_(bias)


def linear_add_(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Add the projection of ``x`` to ``residual [T, N]`` in place; see `linear.reference.linear_add`."""
    if ours := _our_product(x, weight, bias):
        return ours(x, weight, bias, out=residual, add=True)
    if weight.is_mkldnn:
        return residual.add_(linear_cpu.linear_packed(x, weight, bias))
    _multiply(x, weight, residual, add=True)  # the library adds as it writes
    return residual if bias is None else residual.add_(bias)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Project to gate and up and join them; see `linear.reference.gated_linear`."""
    if ours := _our_product(x, weight, bias, gated=True):
        return ours(x, weight, bias, gated=True)
    if ours := _many_rows_product(x, weight, bias, gated=True):
        return ours(x, weight, gated=True)
    return silu_and_mul(linear(x, weight, bias))


def between_attentions(
    residual: Tensor,
    attended: Tensor,
    *,
    o: Tensor,
    o_bias: Tensor | None,
    post_norm: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    input_norm: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """From what a layer attended to, to the next layer's queries, keys and values; ``residual`` goes on in place.

    One launch for few rows of a small model, which rounds as the operations one by one do.
    """
    biased = any(bias is not None for bias in (o_bias, gate_up_bias, down_bias))
    if not biased and (config := _between_config(residual, attended, down, qkv)):
        from quire_kernels.linear.between import between_attentions_rows

        return between_attentions_rows(
            attended,
            residual,
            o=o,
            post_norm=post_norm,
            gate_up=gate_up,
            down=down,
            input_norm=input_norm,
            qkv=qkv,
            qkv_bias=qkv_bias,
            eps=eps,
            config=config,
        )
    linear_add_(residual, attended, o, o_bias)
    gated = gated_linear(rms_norm(residual, post_norm, eps), gate_up, gate_up_bias)
    linear_add_(residual, gated, down, down_bias)
    return linear(rms_norm(residual, input_norm, eps), qkv, qkv_bias)


def _between_config(residual: Tensor, attended: Tensor, down: Tensor, qkv: Tensor) -> BetweenConfig | None:
    if residual.element_size() != 2 or not _runs_triton(residual) or not _is_hopper_or_later(residual.device):
        return None
    if not (residual.is_contiguous() and attended.is_contiguous()):
        return None
    return between_config(
        residual.shape[0],
        heads=attended.shape[1],
        hidden=residual.shape[1],
        inner=down.shape[1],
        outputs=qkv.shape[0],
        num_multiprocessors=_num_multiprocessors(residual.device),
    )


@cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _our_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False
) -> Callable[..., Tensor] | None:
    """The kernel for so few rows of 16-bit data; None where the library is as fast, and for few rows on older GPUs."""
    if x.element_size() != 2 or not _runs_triton(x):
        return None
    if x.shape[0] == 1:
        from quire_kernels.linear.gemv import linear_gemv

        return linear_gemv
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if suits_few_rows(num_rows, num_outputs, num_inputs, gated=gated):
        if not _is_hopper_or_later(x.device):
            return None
        from quire_kernels.linear.rows import linear_rows

        return linear_rows
    if suits_tiles(num_rows, num_outputs, num_inputs, gated=gated) and _is_hopper(x.device):
        tiles = _linear_tiles()
        if tiles and bias is None and tiles.can_multiply(x, weight):
            return tiles.linear_tiles_hopper
    return None


@cache
def _linear_tiles() -> Any:
    """The module of the Hopper kernel; None where this Triton's Gluon, an experiment of its own, lacks what it needs."""
    try:
        from quire_kernels.linear import tiles_hopper
    except (ImportError, AttributeError):
        return None
    return tiles_hopper


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9


def _multiply(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> None:
    """By the library, into `out` or onto what is there, with an algorithm of the table where it has one."""
    if _may_use_table(x) and multiply_by_table(x, weight, out, add=add):
        return
    if add:
        out.addmm_(x, weight.t())
    else:
        torch.mm(x, weight.t(), out=out)


def _may_use_table(x: Tensor) -> bool:
    return x.is_cuda and x.element_size() == 2


def _many_rows_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False
) -> Callable[..., Tensor] | None:
    """The kernel for many rows of 16-bit data on Hopper; None where the library is as fast."""
    if bias is not None or x.shape[0] < MANY_ROWS or x.element_size() != 2:
        return None
    if not _runs_triton(x) or not _is_hopper(x.device):
        return None
    many = _linear_many_rows()
    return many.linear_many_rows if many and many.suits(x, weight, gated=gated) else None


@cache
def _linear_many_rows() -> Any:
    """The module of that kernel; None where this Triton's Gluon, an experiment of its own, lacks what it needs."""
    try:
        from quire_kernels.linear import many_rows
    except (ImportError, AttributeError):
        return None
    return many_rows


@cache
def _is_hopper_or_later(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Return a weight in the layout that `linear` is fastest with; nothing else can read it."""
    return linear_cpu.pack_linear_weight(weight) if weight.device.type == "cpu" else weight


def copy_blocks(kv: Sequence[Tensor] | Tensor, pairs: Tensor) -> None:
    if _runs_triton(pairs):
        from quire_kernels.blocks.copy import copy_blocks_spans

        copy_blocks_spans(kv, pairs)
    else:
        blocks_reference.copy_blocks(kv, pairs)


def sample(
    logits: Tensor, params: SamplingTensors, draws: Tensor | None = None, penalties: Penalties | None = None
) -> Tensor:
    """Draw as `sampling.reference` does, after the ``penalties``, for rows of ``draws`` (int32 ``[R]``) that are not 0.

    The tokens of other rows are 0 on a GPU, where they cost nothing, and mean nothing anywhere. What is drawn is entered
    into the occurrences and the forbidden words of the row's slot; a row of which every token is forbidden draws
    `NO_TOKEN_LEFT`, which is entered nowhere. On a GPU the launches depend on shapes alone.
    """
    if _runs_triton(logits):
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
    if _runs_triton(logits):
        from quire_kernels.sampling.bitmask import apply_token_bitmask as apply

        apply(logits, rows, bitmask)
    else:
        sampling_reference.apply_token_bitmask(logits, rows, bitmask)


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return logprobs.token_logprobs(logits, tokens, num_top)


def likeliest_tokens(logits: Tensor, temperature: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    return logprobs.likeliest_tokens(logits, temperature, num_top)


def enter_changes(state: SlotState, changes: Tensor) -> None:
    if _runs_triton(changes):
        from quire_kernels.slots.update import enter_changes as enter

        enter(state, changes)
    else:
        slots_reference.enter_changes(state, changes)


def fork_slots(state: SlotState, forks: Tensor) -> None:
    if _runs_triton(forks):
        from quire_kernels.slots.update import fork_slots as fork

        fork(state, forks)
    else:
        slots_reference.fork_slots(state, forks)


def prepare_step(state: SlotState, rows: StepRows, block_size: int, out: StepTensors) -> None:
    if _runs_triton(rows.slots):
        from quire_kernels.slots.step import prepare_step as prepare

        prepare(state, rows, block_size, out)
    else:
        slots_reference.prepare_step(state, rows, block_size, out)


def advance_slots(state: SlotState, rows: StepRows, tokens: Tensor, drawn: Tensor) -> None:
    if _runs_triton(rows.slots):
        from quire_kernels.slots.step import advance_slots as advance

        advance(state, rows, tokens, drawn)
    else:
        slots_reference.advance_slots(state, rows, tokens, drawn)


def mask_early_stops(state: SlotState, rows: StepRows, seq_lens: Tensor, logits: Tensor) -> MaskedStops:
    if _runs_triton(rows.slots):
        from quire_kernels.slots.step import mask_early_stops as mask

        return mask(state, rows, seq_lens, logits)
    return slots_reference.mask_early_stops(state, rows, seq_lens, logits)
