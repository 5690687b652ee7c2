"""How the attention of one step is cut into equal work: the tensors that every layer of the step follows.

Data only; `balance.py` fills it on the device. Knows no launch and needs no Triton.
"""

from dataclasses import dataclass

from torch import Tensor

from quire_kernels.attention.tuning import PrefillConfig, StreamConfig


@dataclass(frozen=True, kw_only=True)
class AttentionSchedule:
    """Work of one step over R table rows, for layers that share a sliding window.

    A *decode tile* is `stream.tile` keys of a row with one query token; a *stream* is one program per key head that
    takes an equal run of consecutive decode tiles, whichever rows they belong to. A *prefill tile* is a run of query
    tokens of a row with two or more; a *prefill item* is one of equal splits of the keys that a tile sees, all of them
    where a row has one split. Rows at or past the step's number of sequences have no tile, whatever else they
    hold. The parts and the arrivals are scratch memory of one layer at a time.
    """

    num_seqs: Tensor | None  # [1] int32; None: rows of padding have no query token
    sliding_window: int | None
    stream: StreamConfig
    prefill: PrefillConfig
    rows_per_tile: int  # of a prefill tile: query tokens times heads of a group, padded
    queries_per_tile: int
    max_prefill_items: int
    decode_tile_starts: Tensor  # [R + 1] int32: decode tiles before each row; their number at the end
    stream_rows: Tensor  # [num_streams] int32: the row that holds the first tile of each stream
    arrivals: (
        Tensor  # [R, num_kv_heads] int32: streams that have left their part of a row; zero between layers
    )
    part_out: Tensor  # [num_streams, 2, num_heads, head_dim] float32: what a stream leaves of its first and last row
    part_lse: Tensor  # [num_streams, 2, num_heads] float32, base 2
    prefill_item_starts: Tensor  # [R + 1] int32: prefill items before each row; their number at the end
    prefill_item_rows: Tensor  # [max_prefill_items] int32: the row of each prefill item
    prefill_splits: Tensor  # [R] int32: splits of each prefill tile of a row
    prefill_part_starts: (
        Tensor  # [R] int32: items before each row that leave a part, being one of several splits
    )
    prefill_arrivals: (
        Tensor  # [max_parts, num_kv_heads] int32: by the first part of a tile; zero between layers
    )
    prefill_part_out: Tensor  # [max_parts, num_kv_heads, rows_per_tile, head_dim] float32
    prefill_part_lse: Tensor  # [max_parts, num_kv_heads, rows_per_tile] float32, base 2
