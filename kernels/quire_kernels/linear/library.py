"""Products by cublasLt with algorithms from the table of `algorithm.py`, where torch would take the library's own choice.

The library is the one that torch has loaded. Whatever is missing (the library, its version, the GPU, an entry of the
table, an algorithm that the library accepts) means that torch multiplies, as it does everywhere else; so does anything
but contiguous 16-bit data. Source: NVIDIA's cuBLAS documentation, "Using the cuBLASLt API".
"""

import ctypes
import logging
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire_kernels.linear.algorithm import Algorithm, AlgorithmTable, tuned_algorithms

logger = logging.getLogger(__name__)

WORKSPACE_BYTES = 32 << 20
_ALIGNMENT = 16
"""Bytes: some algorithms copy in pieces of so many."""

_COMPUTE_32F = 68
_FLOAT32 = 0
_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_TRANSPOSE_A = 3
ATTRIBUTES = (c_int32, c_uint32, c_int32, c_uint32, c_uint32, c_uint32, c_uint32, c_uint16, c_uint16)
"""Types of the attributes of an algorithm, in the order of their numbers."""


class LibraryFailure(RuntimeError):
    """A call of the library failed; the message has its name for it."""


class OpaqueAlgorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class CheckResult(ctypes.Structure):
    _fields_ = (
        ("algorithm", OpaqueAlgorithm),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class LibraryProduct:
    """Products of one shape by one algorithm, on one device. Raises LibraryFailure where the library refuses it."""

    def __init__(self, library: "Library", key: "ProductKey", algorithm: Algorithm) -> None:
        num_rows, num_outputs, num_inputs, dtype, add = key
        element = _TYPES[dtype]
        self._library = library
        # To the library, whose matrices have columns, rows of ours are columns: out.T = weight @ x.T.
        self._operation = library.new_operation()
        self._weight = library.new_layout(element, num_inputs, num_outputs)
        self._x = library.new_layout(element, num_inputs, num_rows)
        self._out = library.new_layout(element, num_outputs, num_rows)
        self._algorithm = library.new_algorithm(element, algorithm)
        self._beta = library.one if add else library.zero
        layouts = (self._weight, self._x, self._out, self._out)
        self._workspace_bytes = library.check(self._operation, layouts, self._algorithm)

    def __call__(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        """Multiply on the current stream of `x`'s device, into `out` or onto what is there."""
        library, out_at = self._library, out.data_ptr()
        status = library.multiply(
            library.handle,
            self._operation,
            library.one,
            weight.data_ptr(),
            self._weight,
            x.data_ptr(),
            self._x,
            self._beta,
            out_at,
            self._out,
            out_at,
            self._out,
            self._algorithm,
            library.workspace,
            self._workspace_bytes,
            torch.cuda.current_stream(x.device).cuda_stream,
        )
        library.raise_failure(status)


ProductKey = tuple[int, int, int, torch.dtype, bool]
"""Rows, outputs, inputs, type, and whether the product is added to what is there."""


class Library:
    """cublasLt on one device, with a workspace that its products on that device share: they must follow each other."""

    def __init__(self, path: str, device: torch.device) -> None:
        self.functions = ctypes.CDLL(path)
        self.functions.cublasLtGetStatusName.restype = ctypes.c_char_p
        self.functions.cublasLtGetVersion.restype = c_size_t
        self.multiply = self.functions.cublasLtMatmul
        self.multiply.argtypes = [*[c_void_p] * 14, c_size_t, c_void_p]
        self._ones = (c_float(1.0), c_float(0.0))
        self.one, self.zero = map(ctypes.addressof, self._ones)
        handle = c_void_p()
        with torch.cuda.device(device):
            self.call("cublasLtCreate", byref(handle))
        self.handle = handle.value
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self.workspace = self._workspace.data_ptr()
        self._kept: list[OpaqueAlgorithm] = []

    @property
    def version(self) -> int:
        return self.functions.cublasLtGetVersion()

    def new_operation(self) -> int:
        """Of a transposed matrix by a plain one, summed in float32."""
        operation, transpose = c_void_p(), c_int32(1)
        self.call("cublasLtMatmulDescCreate", byref(operation), c_int(_COMPUTE_32F), c_int(_FLOAT32))
        self.call(
            "cublasLtMatmulDescSetAttribute", operation, c_int(_TRANSPOSE_A), byref(transpose), c_size_t(4)
        )
        return _address(operation)

    def new_layout(self, element: int, num_rows: int, num_columns: int) -> int:
        """Of a matrix whose columns follow each other without gaps."""
        layout, sizes = c_void_p(), (c_uint64(num_rows), c_uint64(num_columns), c_int64(num_rows))
        self.call("cublasLtMatrixLayoutCreate", byref(layout), c_int(element), *sizes)
        return _address(layout)

    def new_algorithm(self, element: int, algorithm: Algorithm) -> int:
        """What the library knows by these settings."""
        opaque, types = OpaqueAlgorithm(), (c_int(_COMPUTE_32F), c_int(_FLOAT32), *[c_int(element)] * 4)
        number, *settings = astuple(algorithm)
        self.call("cublasLtMatmulAlgoInit", c_void_p(self.handle), *types, c_int(number), byref(opaque))
        for attribute, (kind, value) in enumerate(zip(ATTRIBUTES[1:], settings, strict=True), start=1):
            name, size = c_int(attribute), c_size_t(ctypes.sizeof(kind))
            self.call("cublasLtMatmulAlgoConfigSetAttribute", byref(opaque), name, byref(kind(value)), size)
        self._kept.append(opaque)
        return ctypes.addressof(opaque)

    def check(self, operation: int, layouts: tuple[int, ...], algorithm: int) -> int:
        """Bytes of workspace that the algorithm needs for an operation. Raises LibraryFailure where it does not suit."""
        result, arguments = CheckResult(), map(c_void_p, (self.handle, operation, *layouts, algorithm))
        self.call("cublasLtMatmulAlgoCheck", *arguments, byref(result))
        self.raise_failure(result.state)
        if result.workspace_bytes > WORKSPACE_BYTES:
            raise LibraryFailure(f"cublasLt: an algorithm wants {result.workspace_bytes} bytes of workspace")
        return result.workspace_bytes

    def call(self, name: str, *arguments: Any) -> None:
        self.raise_failure(getattr(self.functions, name)(*arguments))

    def raise_failure(self, status: int) -> None:
        """Raises LibraryFailure for any status but success."""
        if status:
            raise LibraryFailure(f"cublasLt: {self.functions.cublasLtGetStatusName(c_int(status)).decode()}")


_products: dict[tuple[torch.device, ProductKey], LibraryProduct | None] = {}


def multiply_by_table(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> bool:
    """Put ``x [T, K]`` by ``weight [N, K]`` into ``out [T, N]``, or add it to what is there, if the table has an
    algorithm for it; else do nothing and return False.

    What is found for a shape is kept. Raises LibraryFailure where the library fails with what it accepted before.
    """
    key = (x.shape[0], *weight.shape, x.dtype, add)
    try:
        product = _products[x.device, key]
    except KeyError:
        product = _products[x.device, key] = _find_product(x.device, key)
    if product is None or not _are_plain(x, weight, out):
        return False
    product(x, weight, out)
    return True


def _are_plain(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    if not (x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()):
        return False
    if x.dtype is not weight.dtype or x.dtype is not out.dtype:
        return False
    return (x.data_ptr() | weight.data_ptr() | out.data_ptr()) % _ALIGNMENT == 0


def _find_product(device: torch.device, key: ProductKey) -> LibraryProduct | None:
    num_rows, num_outputs, num_inputs, dtype, add = key
    table = tuned_algorithms()
    algorithm = table.find(num_outputs, num_inputs, num_rows, add=add)
    if algorithm is None or dtype not in _TYPES:
        return None
    library = library_of(device, table)
    if library is None:
        return None
    try:
        return LibraryProduct(library, key, algorithm)
    except LibraryFailure as failure:
        logger.warning(
            "the library refuses an algorithm: it will choose", extra={"shape": key, "reason": str(failure)}
        )
        return None


@cache
def library_of(device: torch.device, table: AlgorithmTable) -> Library | None:
    """The library, if the table was measured with it and on such a GPU; says once why not."""
    properties = torch.cuda.get_device_properties(device)
    measured_on = (*table.capability, table.num_multiprocessors)
    if (properties.major, properties.minor, properties.multi_processor_count) != measured_on:
        logger.info("no products are tuned for this GPU", extra={"gpu": properties.name})
        return None
    path = loaded_path()
    if path is None:
        logger.info("torch has loaded no cublasLt: its products are as it chooses")
        return None
    try:
        library = Library(path, device)
    except (OSError, AttributeError, LibraryFailure) as failure:
        logger.warning(
            "cublasLt cannot be used: products are as torch chooses", extra={"reason": str(failure)}
        )
        return None
    if library.version != table.version:
        versions = {"version": library.version, "tuned": table.version}
        logger.info("products are tuned for another version of cublasLt: it will choose", extra=versions)
        return None
    return library


def loaded_path() -> str | None:
    """The file of the cublasLt that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(maxsplit=5)[5] for line in lines if "/libcublasLt.so" in line), None)


def _address(pointer: c_void_p) -> int:
    if pointer.value is None:
        raise LibraryFailure("cublasLt: it made nothing, and said that it had")
    return pointer.value
