"""How the prefill attention of one step is cut into equal work: the tensors that every layer of the step follows.

Data only; `balance.py` fills it on the device. Knows no launch and needs no Triton.
"""

from dataclasses import dataclass

from torch import Tensor

from quire_kernels.attention.tuning import PrefillConfig


@dataclass(frozen=True, kw_only=True)
class PrefillSchedule:
    """Work of one step over R table rows, for layers that share a sliding window.

    A *tile* is a run of query tokens of a row; rows with fewer than ``config.shortest`` have none. An *item* is one of nearly
    equal splits of the keys that a tile sees, all of them where its row has one split. An item of several splits leaves a *part*.
    The parts and the arrivals are scratch memory of one layer at a time.
    """

    sliding_window: int | None
    config: PrefillConfig
    rows_per_tile: int  # query tokens times heads of a group, padded
    queries_per_tile: int
    max_items: int
    num_items: Tensor  # [1] int32
    items: Tensor
    """``[more than max_items, 8]`` int32: row, first token, query length, cached keys; tile, splits, split, first part of the
    tile. From the last row to the first, its last tile first, and of that the first split last. Behind the last item the row
    is -1.
    """
    arrivals: Tensor  # [max_parts, num_kv_heads, warpgroups] int32: by the first part of a tile; zero between layers
    taken: Tensor  # [2] int32: items taken beyond the first of each program, programs that are done; zero between layers
    part_out: Tensor  # [max_parts, num_kv_heads, rows_per_tile, head_dim] float32
    part_lse: Tensor  # [max_parts, num_kv_heads, rows_per_tile] float32, base 2
