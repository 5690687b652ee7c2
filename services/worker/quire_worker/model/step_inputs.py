"""What one forward pass needs to know of its batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """A batch of T tokens of S sequences; rows of a sequence are adjacent."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64: block * block_size + offset
    block_tables: Tensor  # [S, max_blocks] int32
    token_rows: Tensor  # [T] int32: the sequence of each token; -1 for padding
    query_start_loc: Tensor  # [S + 1] int32
    seq_lens: Tensor  # [S] int32: length including this step's tokens
    max_query_len: int
    max_seq_len: int
    logits_rows: (
        Tensor | None
    )  # [R]: tokens whose logits are wanted, some more than once; None: every one, once
