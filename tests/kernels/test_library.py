"""The table of the library's algorithms and its lookup; on a GPU, that what the table names multiplies rightly."""

import ctypes
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quire_kernels import linear, linear_add_
from quire_kernels.linear import by_table, library
from quire_kernels.linear.algorithm import Algorithm, AlgorithmTable, shape_key, tuned_algorithms
from torch import Tensor

from benchmarks.kernels.library_algorithms import SHAPES, reaches_library
from tests.kernels.case import assert_close

DEVICE = torch.device("cuda", 0)
ALGORITHM = Algorithm(66, 20, 1, 0, 0, 3, 36, 0, 3)
TEXT = """{"version": 130100, "capability": [9, 0], "num_multiprocessors": 132,
 "algorithms": {"4096x1024": {"256": "66,20,1,0,0,3,36,0,3"}, "1024x2048+": {"96": "66,20,1,0,0,3,36,0,3"}}}"""


def test_algorithm_is_read_as_it_is_written() -> None:
    assert Algorithm.parse(str(ALGORITHM)) == ALGORITHM
    assert str(ALGORITHM) == "66,20,1,0,0,3,36,0,3"


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "66,20,1,0,0,3,36,0,-3", "66,20,1,0,0,3,36,0,3,4", "a,b,c,d,e,f,g,h,i"]
)
def test_what_is_no_algorithm_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|invalid literal"):
        Algorithm.parse(text)


def test_algorithm_is_found_for_exactly_its_shape_and_number_of_rows() -> None:
    table = AlgorithmTable.parse(TEXT)
    assert (table.version, table.capability, table.num_multiprocessors) == (130100, (9, 0), 132)
    assert table.find(4096, 1024, 256, add=False) == ALGORITHM
    assert table.find(1024, 2048, 96, add=True) == ALGORITHM
    for shape in ((4096, 1024, 255), (1024, 4096, 256), (1024, 2048, 96)):
        assert table.find(*shape, add=False) is None
    assert table.find(4096, 1024, 256, add=True) is None


def test_table_of_the_package_is_complete_and_sums_in_float32() -> None:
    table = tuned_algorithms()
    for shape, by_rows in table.by_shape.items():
        outputs, inputs = map(int, shape.removesuffix("+").split("x"))
        assert shape == shape_key(outputs, inputs, add=shape.endswith("+"))
        assert list(by_rows) == sorted(by_rows)
        # Parts of a sum may be added up apart, in a fixed order and in float32, and in no other way.
        assert all(algorithm.splits == 1 or algorithm.reduction == 2 for algorithm in by_rows.values())


def test_float32_and_other_devices_never_ask_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr("quire_kernels.dispatch.projection.multiply_by_table", fail)
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, residual = (torch.ones(*shape, dtype=dtype) for shape in ((3, 8), (4, 8), (3, 4)))
        assert torch.equal(linear(x, weight), torch.full((3, 4), 8, dtype=dtype))
        assert torch.equal(linear_add_(residual, x, weight), torch.full((3, 4), 9, dtype=dtype))


def properties(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"major": 9, "minor": 0, "multi_processor_count": 132, "name": "a GPU", **changes}
    )


class OtherLibrary:
    version = 130200

    def __init__(self, *_: Any) -> None:
        pass


class BrokenLibrary(OtherLibrary):
    def __init__(self, path: str, device: torch.device) -> None:
        raise library.LibraryFailure("cublasLt: CUBLAS_STATUS_NOT_INITIALIZED")


@pytest.mark.parametrize(
    ("gpu", "path", "made", "message"),
    [
        (properties(multi_processor_count=78), "lib", OtherLibrary, "tuned for this GPU"),
        (properties(major=10), "lib", OtherLibrary, "tuned for this GPU"),
        (properties(), None, OtherLibrary, "loaded no cublasLt"),
        (properties(), "lib", OtherLibrary, "another version"),
        (properties(), "lib", BrokenLibrary, "cannot be used"),
        (properties(), "/nowhere/libcublasLt.so.13", library.Library, "cannot be used"),
    ],
)
def test_torch_multiplies_where_the_table_does_not_hold(
    gpu: SimpleNamespace,
    path: str | None,
    made: type,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", {DEVICE: gpu}.get)
    monkeypatch.setattr(by_table, "loaded_path", lambda: path)
    monkeypatch.setattr(by_table, "Library", made)
    table = AlgorithmTable.parse(TEXT)
    with caplog.at_level(logging.INFO, logger=by_table.__name__):
        for _ in range(3):
            assert by_table.library_of(DEVICE, table) is None
    assert [message in record.message for record in caplog.records] == [True]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What was found by shape: nothing yet, with a table of one shape and a library for the CPU."""
    found: dict[Any, Any] = {}
    monkeypatch.setattr(by_table, "_products", found)
    by_shape: dict[str, dict[int, Algorithm]] = {"8x16": {4: ALGORITHM}, "8x16+": {4: ALGORITHM}}
    monkeypatch.setattr(by_table, "tuned_algorithms", lambda: AlgorithmTable(130100, (9, 0), 132, by_shape))
    monkeypatch.setattr(by_table, "library_of", OtherLibrary)
    return found


class FakeProduct:
    """Multiplies as torch does, and counts."""

    num_products = 0

    def __init__(self, library: OtherLibrary, key: library.ProductKey, algorithm: Algorithm) -> None:
        assert algorithm == ALGORITHM
        self._add = key[-1]

    def __call__(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        FakeProduct.num_products += 1
        out.copy_(x @ weight.t() + (out if self._add else 0))


def operands() -> tuple[Tensor, Tensor, Tensor]:
    x, weight, out = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((4, 16), (8, 16), (4, 8)))
    return x, weight, out


def test_product_is_found_once_for_a_shape(products: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_table, "LibraryProduct", FakeProduct)
    monkeypatch.setattr(FakeProduct, "num_products", 0)
    x, weight, out = operands()
    assert by_table.multiply_by_table(x, weight, out)
    assert torch.equal(out, torch.full_like(out, 16))
    assert by_table.multiply_by_table(x, weight, out, add=True)
    assert torch.equal(out, torch.full_like(out, 32))
    assert not by_table.multiply_by_table(x[:3], weight, out[:3])
    assert (FakeProduct.num_products, len(products)) == (2, 3)


def test_only_plain_16_bit_matrices_are_multiplied(
    products: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_table, "LibraryProduct", FakeProduct)
    monkeypatch.setattr(FakeProduct, "num_products", 0)
    x, weight, out = operands()
    wide, shifted = torch.ones(4, 32, dtype=torch.bfloat16), torch.ones(65, dtype=torch.bfloat16)[1:]
    for matrices in (
        (wide[:, 16:], weight, out),
        (x, torch.ones(16, 8, dtype=torch.bfloat16).t(), out),
        (shifted.view(4, 16), weight, out),
        (x, weight, out.float()),
        (x, weight.half(), out),
        tuple(matrix.float() for matrix in (x, weight, out)),
    ):
        assert not by_table.multiply_by_table(*matrices)
    assert FakeProduct.num_products == 0


@pytest.mark.usefixtures("products")
def test_refused_algorithm_is_reported_once_and_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise library.LibraryFailure("cublasLt: CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(by_table, "LibraryProduct", refuse)
    for _ in range(3):
        assert not by_table.multiply_by_table(*operands())
    assert [record.__dict__["reason"] for record in caplog.records] == [
        "cublasLt: CUBLAS_STATUS_NOT_SUPPORTED"
    ]


def tuned_rows(shape: str) -> list[int]:
    return list(tuned_algorithms().by_shape[shape])


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def is_tuned_here() -> bool:
    """Whether GPU and library are those of the table, asked past the code that is tested: there it must multiply."""
    table, properties = tuned_algorithms(), torch.cuda.get_device_properties(DEVICE)
    here = (properties.major, properties.minor, properties.multi_processor_count)
    if here != (*table.capability, table.num_multiprocessors):
        return False
    path = library.loaded_path()
    assert path is not None, "torch multiplies by a library that was not found"
    ask = ctypes.CDLL(path).cublasLtGetVersion
    ask.restype = ctypes.c_size_t
    return ask() == table.version


@pytest.mark.gpu
@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", list(tuned_algorithms().by_shape))
def test_products_by_the_table_equal_those_in_float64(shape: str, dtype: torch.dtype) -> None:
    if not is_tuned_here():
        pytest.skip("the table is for another library or another GPU")
    add = shape.endswith("+")
    num_outputs, num_inputs = map(int, shape.removesuffix("+").split("x"))
    weight = random(num_outputs, num_inputs, dtype=dtype) * 0.02
    seen = num_outputs // 997 + 1  # in strides: the truth of all outputs would take long
    for num_rows in tuned_rows(shape):
        x = random(num_rows, num_inputs, dtype=dtype)
        before = (
            random(num_rows, num_outputs, dtype=dtype)
            if add
            else torch.full((num_rows, num_outputs), float("nan"), dtype=dtype, device="cuda")
        )
        out, again = before.clone(), before.clone()
        assert by_table.multiply_by_table(x, weight, out, add=add)
        assert by_table.multiply_by_table(x, weight, again, add=add)
        assert torch.equal(out, again)
        expected = x.double() @ weight[::seen].double().t() + (before[:, ::seen].double() if add else 0)
        assert_close(out[:, ::seen].to(dtype), expected.to(dtype))


@pytest.mark.gpu
@pytest.mark.usefixtures("seeded")
def test_captured_products_equal_eager_ones_bit_for_bit() -> None:
    for shape in tuned_algorithms().by_shape:
        num_outputs, num_inputs = map(int, shape.removesuffix("+").split("x"))
        num_rows, operation = tuned_rows(shape)[0], linear_add_ if shape.endswith("+") else linear
        weight = random(num_outputs, num_inputs, dtype=torch.bfloat16)
        x, residual = (random(num_rows, n, dtype=torch.bfloat16) for n in (num_inputs, num_outputs))
        arguments = (x, weight) if operation is linear else (residual, x, weight)
        start = residual.clone()
        eager = operation(*arguments).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = operation(*arguments)
        residual.copy_(start)
        graph.replay()
        assert torch.equal(captured, eager)


@pytest.mark.gpu
def test_matrices_with_gaps_are_left_to_torch() -> None:
    for shape in tuned_algorithms().by_shape:
        num_outputs, num_inputs = map(int, shape.removesuffix("+").split("x"))
        wide = random(tuned_rows(shape)[0], 2 * num_inputs, dtype=torch.bfloat16)
        weight = random(num_outputs, num_inputs, dtype=torch.bfloat16)
        out = random(len(wide), num_outputs, dtype=torch.bfloat16)
        assert not by_table.multiply_by_table(wide[:, num_inputs:], weight, out, add=shape.endswith("+"))


def test_no_entry_of_the_table_is_for_a_product_that_a_kernel_of_ours_takes() -> None:
    names = {
        shape_key(outputs, inputs, add=kind == "add"): name
        for name, (outputs, inputs, kind) in SHAPES.items()
    }
    for shape in tuned_algorithms().by_shape:
        taken = [num_rows for num_rows in tuned_rows(shape) if not reaches_library(names[shape], num_rows)]
        assert not taken, shape


def test_failure_names_the_call_and_the_product() -> None:
    class Functions:
        @staticmethod
        def cublasLtGetStatusName(status: Any) -> bytes:
            return b"CUBLAS_STATUS_INVALID_VALUE"

    failing = library.Library.__new__(library.Library)
    failing.__dict__["functions"] = Functions
    failing.raise_failure("cublasLtMatmul", 0)
    with pytest.raises(
        library.LibraryFailure, match="cublasLtMatmul: CUBLAS_STATUS_INVALID_VALUE for 4 x 16 by 8 x 16"
    ):
        failing.raise_failure("cublasLtMatmul", 7, "4 x 16 by 8 x 16")
