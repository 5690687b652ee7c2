"""The processor's faster paths against the torch references, and the random generator against its test
vectors.
"""

import pytest
import quire_kernels
import torch
from quire_kernels.attention import cpu as attention_cpu
from quire_kernels.attention import reference as attention_reference
from quire_kernels.linear import reference as linear_reference
from quire_kernels.linear.boxes import misfit_of_boxes
from quire_kernels.sampling import cpu as sampling_cpu
from quire_kernels.sampling import philox
from quire_kernels.sampling import reference as sampling_reference
from quire_kernels.sampling.params import NO_TOKEN_LEFT, SamplingTensors
from torch import Tensor

BLOCK_SIZE = 16


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    assert philox.philox4x32(words(counter), words(key)) == words(expected)  # pyright: ignore[reportArgumentType]


def test_noise_is_exact_and_finite_at_the_edges_of_the_word() -> None:
    bits = torch.tensor([0, 1, 2**31, 2**32 - 2**24 - 1, 2**32 - 2**24 + 1, 2**32 - 2, 2**32 - 1])
    exact = -torch.log((bits.double() + 0.5) / 2**32)
    drawn = philox.exponential_from_bits(bits)
    assert bool((drawn > 0).all())
    assert bool(philox.gumbel_from_bits(bits).isfinite().all())
    assert torch.allclose(drawn.double(), exact, rtol=1e-5, atol=0)


def test_noise_of_one_token_is_that_of_the_whole_vocabulary() -> None:
    seed, index, position = torch.tensor([-5, 2**40 + 1]), torch.tensor([0, 3]), torch.tensor([9, 1000])
    everything = philox.vocabulary_bits(seed, index, position, 103)
    token = torch.tensor([102, 17])
    assert torch.equal(philox.token_bits(seed, index, position, token), everything[torch.arange(2), token])
    assert not torch.equal(everything[0], everything[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 7, 64])
def test_attention_equals_reference_and_ignores_unwritten_slots(
    dtype: torch.dtype, window: int | None
) -> None:
    torch.manual_seed(3)
    query_lens = torch.tensor([0, 1, 1, 16, 5, 0, 1, 1, 120, 1], dtype=torch.int32)
    seq_lens = torch.tensor([1, 15, 16, 17, 0, 100, 33, 200, 64], dtype=torch.int32)
    caches = torch.full((2, 200, BLOCK_SIZE, 2, 32), float("nan"), dtype=dtype)
    tables = (torch.randperm(199)[: 9 * 13] + 1).view(9, 13).int()
    for row, seq_len in enumerate(seq_lens.tolist()):
        position = torch.arange(seq_len)
        caches[:, tables[row, position // BLOCK_SIZE], position % BLOCK_SIZE] = torch.randn(
            2, seq_len, 2, 32
        ).to(dtype)
    starts = query_lens.cumsum(0, dtype=torch.int32)
    q = torch.randn(int(starts[-1]), 6, 32).to(dtype)
    options = {"scale": 0.2, "sliding_window": window, "max_query_len": 120, "max_seq_len": 200}
    expected = attention_reference.paged_attention(q, *caches, tables, starts, seq_lens, **options)
    actual = attention_cpu.paged_attention(q, *caches, tables, starts, seq_lens, **options)
    tolerance = 2e-6 if dtype == torch.float32 else 8e-3
    assert not actual.isnan().any()
    assert float((actual - expected).double().norm() / expected.double().norm()) < tolerance


def test_attention_follows_tensors_that_are_changed_in_place() -> None:
    torch.manual_seed(6)
    caches = torch.randn(2, 12, BLOCK_SIZE, 2, 32)
    tables = (torch.randperm(11) + 1)[:10].view(2, 5).int()
    starts, seq_lens = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([20, 60], dtype=torch.int32)
    q = torch.randn(2, 4, 32)
    options = {"scale": 0.2, "max_query_len": 1, "max_seq_len": 80}
    for window in (None, 9, None):
        expected = attention_reference.paged_attention(
            q, *caches, tables, starts, seq_lens, sliding_window=window, **options
        )
        actual = attention_cpu.paged_attention(
            q, *caches, tables, starts, seq_lens, sliding_window=window, **options
        )
        assert torch.allclose(actual, expected, atol=1e-5)
        seq_lens += 1
        tables[1, 0] = 0


@pytest.mark.parametrize("num_rows", [1, 2, 16, 67])
@pytest.mark.parametrize(("num_outputs", "width"), [(31, 7), (96, 64), (1003, 130)])
def test_packed_projection_equals_reference(num_rows: int, num_outputs: int, width: int) -> None:
    torch.manual_seed(8)
    weight, bias = torch.randn(num_outputs, width), torch.randn(num_outputs)
    packed = quire_kernels.pack_linear_weight(weight)
    x = torch.randn(num_rows, 2 * width)[:, :width]
    for each in (None, bias):
        expected = linear_reference.linear(x, weight, each)
        assert torch.allclose(quire_kernels.linear(x, packed, each), expected, rtol=1e-5, atol=1e-4)


def test_weights_of_16_bits_are_left_as_they_are() -> None:
    weight = torch.randn(32, 16).bfloat16()
    assert quire_kernels.pack_linear_weight(weight) is weight


def test_cache_of_8_bits_is_read_and_written_within_its_rounding() -> None:
    torch.manual_seed(6)
    seq_lens, scales = torch.tensor([40, 33], dtype=torch.int32), {"k_scale": 0.5, "v_scale": 2.0}
    tables = torch.tensor([[3, 1, 5], [2, 6, 4]], dtype=torch.int32)
    k, v, q = torch.randn(73, 2, 32), torch.randn(73, 2, 32), torch.randn(8, 6, 32)
    position = torch.cat((torch.arange(40), torch.arange(33)))
    owner = torch.tensor([0] * 40 + [1] * 33)
    slots = tables[owner, position // BLOCK_SIZE].long() * BLOCK_SIZE + position % BLOCK_SIZE
    angles = torch.zeros(64, 32)
    angles[:, :16] = 1.0  # cosines: no rotation
    options = {"scale": 0.2, "sliding_window": None, "max_query_len": 7, "max_seq_len": 40}
    attended: list[Tensor] = []
    for dtype, factors in ((torch.float32, {}), (torch.float8_e4m3fn, scales)):
        caches = torch.zeros(2, 7, BLOCK_SIZE, 2, 32, dtype=dtype)
        quire_kernels.rotary_embedding_and_cache(k, k, v, angles, position, *caches, slots, **factors)
        starts = torch.tensor([0, 7, 8], dtype=torch.int32)
        attended.append(
            quire_kernels.paged_attention(q, *caches, tables, starts, seq_lens, **options, **factors)
        )
    exact, rounded = attended
    error = float((rounded - exact).norm() / exact.norm())
    assert (
        1e-3 < error < 0.04
    )  # three bits of mantissa: each value is off by up to 1 / 16, by 1 / 40 on average
    saturated = torch.zeros(2, 1, BLOCK_SIZE, 1, 4, dtype=torch.float8_e4m3fn)
    one = torch.full((1, 1, 4), 1e5)
    quire_kernels.rotary_embedding_and_cache(
        one, one, -one, angles[:, 14:18], position[:1], *saturated, slots[:1] * 0
    )
    assert saturated.float()[:, 0, 0, 0].unique(dim=1).tolist() == [[448.0], [-448.0]]


def batch_of(num_rows: int) -> SamplingTensors:
    return SamplingTensors(
        temperature=torch.tensor([0.0, 0.5, 1.0, 1.5]).repeat(num_rows)[:num_rows],
        top_k=torch.tensor([0, 0, 5, 40, 0], dtype=torch.int32).repeat(num_rows)[:num_rows],
        top_p=torch.tensor([1.0, 0.9, 0.5]).repeat(num_rows)[:num_rows],
        min_p=torch.tensor([0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.2]).repeat(num_rows)[:num_rows],
        seed=torch.arange(num_rows) * -(7919**3),
        sequence_index=torch.arange(num_rows, dtype=torch.int32) % 3,
        position=torch.arange(num_rows, dtype=torch.int32) + 5,
    )


def test_fast_sampler_chooses_what_the_reference_chooses() -> None:
    torch.manual_seed(4)
    logits, params = torch.randn(105, 1003) * 2, batch_of(105)
    logits[3:9] = logits[3:9].round()  # many ties, also at the thresholds
    assert torch.equal(sampling_cpu.sample(logits, params), sampling_reference.sample(logits, params))


def test_a_row_of_which_every_token_is_forbidden_draws_none() -> None:
    logits, params = torch.randn(105, 300), batch_of(105)
    logits[::4] = logits[1::4] = -float("inf")  # greedy rows and others
    tokens = quire_kernels.sample(logits, params)
    assert torch.equal(tokens, sampling_reference.sample(logits, params))
    assert (tokens == NO_TOKEN_LEFT).tolist() == [row % 4 < 2 for row in range(105)]


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(5)
    logits, params = torch.randn(12, 500), batch_of(12)
    together = quire_kernels.sample(logits, params)
    alone = [
        quire_kernels.sample(logits[row : row + 1], params.rows(torch.tensor([row]))) for row in range(12)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_draws_follow_the_distribution() -> None:
    probability = torch.tensor([0.5, 0.25, 0.15, 0.1])
    num_rows = 20_000
    zero = torch.zeros(num_rows, dtype=torch.int32)
    params = SamplingTensors(
        temperature=torch.ones(num_rows),
        top_k=zero,
        top_p=torch.ones(num_rows),
        min_p=torch.zeros(num_rows),
        seed=torch.full((num_rows,), 11),
        sequence_index=zero,
        position=torch.arange(num_rows, dtype=torch.int32),
    )
    tokens = quire_kernels.sample(probability.log().expand(num_rows, 4), params)
    share = tokens.bincount(minlength=4) / num_rows
    assert torch.allclose(share, probability, atol=0.015)


def test_logprobs_order_ties_by_id_and_count_ranks_from_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    logprob, rank, top_ids, top_logprobs = quire_kernels.token_logprobs(logits, torch.tensor([0, 3]), 2)
    assert rank.tolist() == [3, 1]
    assert top_ids.tolist() == [[1, 2], [0, 1]]
    expected = logits.log_softmax(dim=1)
    assert torch.allclose(logprob, expected[[0, 1], [0, 3]])
    assert torch.allclose(top_logprobs, expected.gather(1, top_ids))
    with pytest.raises(ValueError, match="num_top"):
        quire_kernels.token_logprobs(logits, torch.tensor([0, 3]), 5)


def test_likeliest_tokens_are_those_under_the_temperature_of_their_row() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.5, 0.0, -4.0, 2.0]])
    temperature = torch.tensor([1.0, 2.0])
    ids, logprobs = quire_kernels.likeliest_tokens(logits, temperature, 3)
    assert ids.tolist() == [[1, 2, 0], [3, 0, 1]]
    expected = (logits / temperature.unsqueeze(1)).log_softmax(dim=1)
    assert torch.allclose(logprobs, expected.gather(1, ids))


def test_columns_of_another_dtype_are_refused_by_name() -> None:
    params = batch_of(2)
    columns = {name: getattr(params, name) for name in SamplingTensors.__dataclass_fields__}
    with pytest.raises(ValueError, match="top_k"):
        SamplingTensors(**(columns | {"top_k": columns["top_k"].long()}))


def test_what_hopper_cannot_copy_in_boxes_is_named() -> None:
    x, weight = torch.zeros(4, 128, dtype=torch.bfloat16), torch.zeros(256, 128, dtype=torch.bfloat16)
    assert misfit_of_boxes(x, weight) is None
    wider = torch.zeros(4, 132, dtype=torch.bfloat16)
    for operands, reason in (
        ((x.float(), weight.float()), "x is of torch.float32; it must be of 16 bits"),
        ((x, weight.half()), "weight is of torch.float16; it must be of torch.bfloat16"),
        ((x, torch.zeros(128, 256, dtype=torch.bfloat16).t()), "weight has strides (1, 256)"),
        ((wider[:, :128], weight), "x has strides (132, 1)"),
        ((torch.zeros(4, 136, dtype=torch.bfloat16)[:, 4:132], weight), "x begins 8 bytes past"),
    ):
        assert (misfit_of_boxes(*operands) or "").startswith(reason)


def test_a_product_of_many_rows_has_one_type() -> None:
    many_rows = pytest.importorskip("quire_kernels.linear.many_rows", exc_type=ImportError)
    x, weight = torch.zeros(4, 128, dtype=torch.bfloat16), torch.zeros(256, 128, dtype=torch.bfloat16)
    assert many_rows.can_multiply(x, weight, gated=False)
    assert not many_rows.can_multiply(x, weight.half(), gated=False)
    with pytest.raises(ValueError, match=r"out is of torch\.float32; it must be of torch\.bfloat16"):
        many_rows.linear_many_rows(x, weight, out=torch.zeros(4, 256))
    with pytest.raises(ValueError, match="weight has 192 outputs; they must be whole tiles of 128"):
        many_rows.linear_many_rows(x, weight[:192])
