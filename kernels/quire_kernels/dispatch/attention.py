"""Which implementation attends, by itself and together with the rotation before it, and how its work is cut."""

import torch
from torch import Tensor

from quire_kernels.attention import cpu as attention_cpu
from quire_kernels.attention import reference as attention_reference
from quire_kernels.attention.new_tokens import NewTokens
from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.dispatch import device
from quire_kernels.dispatch.rotary import rotary_embedding_and_cache


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
    if not device.runs_triton(seq_lens):
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
    settled: bool = False,
) -> Tensor:
    """Attend as `attention.reference` does, over tables that may be padded by rows without a query token.

    The caches may be of another type than q (8 bits to hold twice as much); keys are what they hold times ``k_scale``,
    values times ``v_scale``.

    The launches depend on the shapes of the tensors, on whether ``max_query_len`` is 1 (such a step takes no
    ``schedule``) and on ``max_seq_len``.

    With ``settled`` the caller promises that an ordinary launch, one that starts when all before it have ended, lies between
    the last one that wrote the tables, the lengths, the schedule or keys and values of earlier positions, and this one. Earlier
    are those before the query tokens of a row. These may then be read before the launch that makes the others has ended.
    """
    tensors = (q, k_cache, v_cache, block_tables, query_start_loc, seq_lens)
    if device.runs_triton(q):
        from quire_kernels.attention.paged import paged_attention_mixed

        return paged_attention_mixed(
            *tensors,
            scale=scale * k_scale,
            sliding_window=sliding_window,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            schedule=schedule,
            v_scale=v_scale,
            settled=settled,
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

    No row reads a place that another row of this step writes: whether it would find the old content or the new is open.

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
    if device.runs_triton(q):
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
