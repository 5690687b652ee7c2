"""A decode step's tokens rotated, cached and attended from in one launch: against the torch reference, caches included."""

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels import dispatch
from quire_kernels.attention import paged
from quire_kernels.attention.new_tokens import NewTokens
from quire_kernels.attention.reference import rotary_decode_attention
from quire_kernels.attention.tuning import DecodeConfig

from tests.kernels.case import BLOCK_SIZE, DEVICE, ON_GPU, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")

HAS_PAGE_COPIES = ON_GPU and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HAS_PAGE_COPIES, reason="pages are copied on Hopper alone")

BOUNDARIES = [1, 2, 15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 66, 127, 128, 129, 130]
NAN = float("nan")


class Step:
    """A decode step by the lengths of its sequences. What no one may read is NaN."""

    def __init__(
        self,
        seq_lens: list[int],
        num_heads: int,
        num_kv_heads: int,
        *,
        head_dim: int = 128,
        with_norm: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        num_poisoned_rows: int = 3,
    ) -> None:
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32)
        self.num_rows, longest = len(seq_lens), max(seq_lens)
        max_blocks = -(-longest // BLOCK_SIZE) + 1
        num_blocks = 1 + self.num_rows * max_blocks
        self.tables = (torch.randperm(num_blocks - 1) + 1).view(self.num_rows, max_blocks).int()
        self.caches = torch.full((2, num_blocks, BLOCK_SIZE, num_kv_heads, head_dim), NAN, dtype=dtype)
        for row, seq_len in enumerate(seq_lens):
            position = torch.arange(seq_len - 1)
            where = self.tables[row, position // BLOCK_SIZE], position % BLOCK_SIZE
            self.caches[:, where[0], where[1]] = torch.randn(
                2, len(position), num_kv_heads, head_dim, dtype=dtype
            )
        self.caches = self.caches.to(DEVICE)
        self.starts = torch.arange(self.num_rows + 1, dtype=torch.int32)
        last = self.seq_lens.long() - 1
        blocks = self.tables[torch.arange(self.num_rows), last // BLOCK_SIZE].long()
        # Some way off the real positions, which attention does not need to know.
        self.positions = (last + 3).to(DEVICE)
        self.slots = (blocks * BLOCK_SIZE + last % BLOCK_SIZE).to(DEVICE)
        self.qkv = random(self.num_rows, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
        self.cos_sin = random(longest + 3, head_dim)
        self.norms = [random(head_dim, dtype=dtype) if with_norm else None for _ in range(2)]
        self._num_poisoned_rows = num_poisoned_rows

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of q, k and v in the fused projection."""
        sizes = [heads * self._head_dim for heads in (self._num_heads, *[self._num_kv_heads] * 2)]
        q, k, v = (part.unflatten(1, (-1, self._head_dim)) for part in qkv.split(sizes, dim=1))
        return q, k, v

    def expected(self, window: int | None) -> tuple[Tensor, Tensor]:
        """The reference's output, and its caches."""
        caches = self.caches.clone()
        tables = (self.tables.to(DEVICE), self.starts.to(DEVICE), self.seq_lens.to(DEVICE))
        out = rotary_decode_attention(
            *self.heads(self.qkv), self.cos_sin, self.positions, caches[0], caches[1], self.slots, *tables, **self.options(window)
        )  # fmt: skip
        return out, caches

    def actual(
        self, window: int | None, config: DecodeConfig | None, *, settled: bool
    ) -> tuple[Tensor, Tensor]:
        """The kernel's, among rows of padding whose lengths, tables and heads are poisoned."""
        num_poisoned = self._num_poisoned_rows
        caches = self.caches.clone()
        poison = torch.randint(-(2**31), 2**31 - 1, (num_poisoned,), dtype=torch.int32)
        starts = torch.cat((self.starts, self.starts[-1:].expand(num_poisoned))).to(DEVICE)
        seq_lens = torch.cat((self.seq_lens, poison)).to(DEVICE)
        tables = torch.cat((self.tables, poison[:, None].expand(-1, self.tables.shape[1]))).to(DEVICE)
        qkv = torch.cat((self.qkv, torch.full_like(self.qkv[:1], NAN).expand(num_poisoned, -1)))
        positions, slots = (
            torch.cat((each, torch.full_like(each[:1], -(2**40)).expand(num_poisoned)))
            for each in (self.positions, self.slots)
        )
        options = self.options(window)
        q, k, v = self.heads(qkv)
        new_tokens = NewTokens(
            k=k,
            v=v,
            cos_sin=self.cos_sin,
            positions=positions,
            slot_mapping=slots,
            q_norm_weight=options["q_norm_weight"],
            k_norm_weight=options["k_norm_weight"],
            eps=options["eps"],
            settled=settled,
        )
        assert paged.rotates_on_the_way(q, caches[0], caches[1], len(seq_lens), new_tokens)
        out = paged.paged_attention_mixed(
            q,
            caches[0],
            caches[1],
            tables,
            starts,
            seq_lens,
            scale=options["scale"],
            sliding_window=window,
            max_query_len=1,
            max_seq_len=options["max_seq_len"],
            decode=config,
            new_tokens=new_tokens,
        )
        return out[: self.num_rows], caches

    def check(
        self, window: int | None = None, config: DecodeConfig | None = None, *, settled: bool = True
    ) -> None:
        """The kernel's output and caches are the reference's."""
        expected, expected_caches = self.expected(window)
        actual, caches = self.actual(window, config, settled=settled)
        assert_close(actual, expected)
        assert torch.equal(caches.isnan(), expected_caches.isnan())
        assert_close(caches.nan_to_num(), expected_caches.nan_to_num())
        written = self.slots // BLOCK_SIZE, self.slots % BLOCK_SIZE
        assert torch.equal(caches[1][written], expected_caches[1][written])
        # All but what rotation rounds another way.
        same = caches[0][written] == expected_caches[0][written]
        assert float(same.double().mean()) > 0.99

    def options(self, window: int | None) -> dict[str, Any]:
        """What stays the same in every call."""
        return {
            "q_norm_weight": self.norms[0],
            "k_norm_weight": self.norms[1],
            "eps": 1e-6,
            "scale": self._head_dim**-0.5,
            "sliding_window": window,
            "max_seq_len": int(self.seq_lens.max()),
        }


def by_page(tile: int, num_stages: int, num_splits: int) -> DecodeConfig:
    return DecodeConfig(
        tile=tile, num_splits=num_splits, min_split=32, num_warps=1, num_stages=num_stages, by_page=True
    )


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "with_norm", "config", "dtype"),
    [
        (8, 8, True, by_page(16, 3, 1), torch.bfloat16),
        (16, 8, True, by_page(32, 2, 1), torch.bfloat16),
        (32, 8, False, by_page(32, 3, 2), torch.float16),
        (28, 4, False, by_page(16, 4, 8), torch.bfloat16),
        (8, 1, True, by_page(32, 3, 64), torch.bfloat16),
        (30, 2, True, by_page(16, 3, 4), torch.float16),
    ],
)
def test_rotary_decode_attention_equals_reference(
    num_heads: int,
    num_kv_heads: int,
    with_norm: bool,
    config: DecodeConfig,
    dtype: torch.dtype,
    window: int | None,
) -> None:
    lengths = [*BOUNDARIES, 1000, 1024, 1025, 4001]
    Step(lengths, num_heads, num_kv_heads, with_norm=with_norm, dtype=dtype).check(window, config)


@pytest.mark.gpu
@on_hopper
def test_a_window_of_one_key_leaves_the_new_token_alone() -> None:
    Step([1, 2, 16, 17, 500], 16, 8).check(1, settled=False)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("seed", range(6))
def test_tuned_rotary_decode_attention_of_ragged_batches_equals_reference(seed: int) -> None:
    pick = Random(seed)
    num_rows = pick.choice([2, 9, 40, 100, 300, 600])
    lengths = [pick.choice([pick.randint(1, 40), pick.randint(1, 700)]) for _ in range(num_rows)]
    window = pick.choice([None, 33, 300])
    Step([*lengths, 700], *pick.choice([(16, 8), (32, 8), (14, 2)]), with_norm=seed % 2 == 0).check(
        window, settled=seed < 4
    )


@pytest.mark.gpu
@on_hopper
def test_a_chain_of_overlapping_launches_reads_no_table_or_key_too_early() -> None:
    """Layers of a model in a graph, of which the host changes tables and lengths and earlier keys between replays."""
    num_rows, num_layers, max_len, hidden = 24, 4, 300, 1024
    max_blocks = max_len // BLOCK_SIZE + 1
    caches = random(num_layers, 2, 1 + num_rows * max_blocks, BLOCK_SIZE, 8, 128, dtype=torch.bfloat16)
    weights = [0.03 * random(4096, hidden, dtype=torch.bfloat16) for _ in range(num_layers)]
    outputs = [0.03 * random(hidden, 2048, dtype=torch.bfloat16) for _ in range(num_layers)]
    norm, cos_sin = random(hidden, dtype=torch.bfloat16), random(max_len, 128)
    tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=DEVICE)
    seq_lens = torch.ones(num_rows, dtype=torch.int32, device=DEVICE)
    starts = torch.arange(num_rows + 1, dtype=torch.int32, device=DEVICE)
    # What a step writes before its layers, by launches that do not overlap.
    given_tables, given_lens = tables.clone(), seq_lens.clone()
    x = random(num_rows, hidden, dtype=torch.bfloat16)

    def step(settled: bool) -> Tensor:
        tables.copy_(given_tables)
        seq_lens.copy_(given_lens)
        positions = seq_lens.long() - 1
        slots = tables.gather(1, positions[:, None] // BLOCK_SIZE)[:, 0].long() * BLOCK_SIZE + positions % 16
        residual = x.clone()
        for layer in range(num_layers):
            qkv = dispatch.linear(dispatch.rms_norm(residual, norm, 1e-6), weights[layer])
            q, k, v = (part.unflatten(1, (-1, 128)) for part in qkv.split((2048, 1024, 1024), dim=1))
            out = dispatch.rotary_decode_attention(
                q, k, v, cos_sin, positions, caches[layer, 0], caches[layer, 1], slots, tables, starts, seq_lens,
                q_norm_weight=cos_sin[0].bfloat16(), k_norm_weight=cos_sin[1].bfloat16(), eps=1e-6, scale=0.1,
                sliding_window=None, max_seq_len=max_len, settled=settled,
            )  # fmt: skip
            residual = dispatch.linear_add_(residual, out.view(num_rows, -1), outputs[layer])
        return residual

    results = []
    for settled in (False, True):
        step(settled)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step(settled)
        results.append((graph, out))
    before = caches.clone()
    given_lens.copy_(torch.randint(1, 100, (num_rows,), dtype=torch.int32))
    for _ in range(100):
        given_tables.copy_(torch.randperm(num_rows * max_blocks).view(num_rows, -1).int() + 1)
        given_lens.add_(torch.randint(0, 3, (num_rows,), dtype=torch.int32, device=DEVICE)).clamp_(
            max=max_len
        )
        x.normal_()
        outs = []
        for graph, out in results:
            caches.copy_(before)
            graph.replay()
            graph.replay()  # right behind: what the first one wrote is an earlier key of nobody, and is written again
            outs.append(out.clone())
        assert not outs[0].isnan().any()
        assert torch.equal(*outs)
        before.copy_(caches)


def suits(
    *,
    num_heads: int = 4,
    head_dim: int = 128,
    rotary_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    norms: tuple[bool, bool] = (True, True),
    num_rows: int = 3,
) -> bool:
    qkv = torch.zeros(3, (num_heads + 4) * head_dim, dtype=dtype).unflatten(1, (-1, head_dim))
    q, k, v = qkv.split((num_heads, 2, 2), dim=1)
    caches = torch.zeros(2, 3, 16, 2, head_dim, dtype=dtype)
    weights = [torch.zeros(head_dim, dtype=dtype) if has else None for has in norms]
    new_tokens = NewTokens(
        k=k,
        v=v,
        cos_sin=torch.zeros(8, rotary_dim),
        positions=torch.zeros(3, dtype=torch.int64),
        slot_mapping=torch.zeros(3, dtype=torch.int64),
        q_norm_weight=weights[0],
        k_norm_weight=weights[1],
        eps=1e-6,
        settled=True,
    )
    return new_tokens.suit_pages(q, caches[0], num_rows)


def test_only_usual_heads_are_rotated_on_the_way() -> None:
    assert suits()
    assert suits(norms=(False, False))
    assert suits(num_heads=30)
    assert not suits(num_heads=32)  # 16 query heads leave no row for the key
    assert not suits(rotary_dim=64)
    assert not suits(head_dim=64, rotary_dim=64)
    assert not suits(norms=(True, False))
    assert not suits(num_rows=4)  # one of them, and no one knows which, has no token


@pytest.mark.parametrize("head_dim", [24, 128])
def test_without_the_kernel_two_launches_do_the_same(head_dim: int) -> None:
    step = Step([1, 16, 17, 40], 4, 2, head_dim=head_dim, dtype=torch.float32)
    expected, expected_caches = step.expected(20)
    actual = dispatch.rotary_decode_attention(
        *step.heads(step.qkv), step.cos_sin, step.positions, step.caches[0], step.caches[1], step.slots, step.tables.to(DEVICE),
        step.starts.to(DEVICE), step.seq_lens.to(DEVICE), **step.options(20),
    )  # fmt: skip
    assert_close(actual, expected)
    assert_close(step.caches.nan_to_num(), expected_caches.nan_to_num())
