"""cublasLt, the library of products that torch has loaded, by ctypes: products of 16-bit matrices by a given algorithm.

Knows no table: which algorithm is taken, and when, is decided in `by_table.py`. Source: NVIDIA's cuBLAS documentation,
"Using the cuBLASLt API".
"""

import ctypes
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire_kernels.linear.algorithm import Algorithm

WORKSPACE_BYTES = 32 << 20
_COMPUTE_32F = 68
_FLOAT32 = 0
TYPES = {torch.float16: 2, torch.bfloat16: 14}
_TRANSPOSE_A = 3
ATTRIBUTES = (c_int32, c_uint32, c_int32, c_uint32, c_uint32, c_uint32, c_uint32, c_uint16, c_uint16)
"""Types of the attributes of an algorithm, in the order of their numbers."""


class LibraryFailure(RuntimeError):
    """A call of the library failed; the message has the call and the library's name for what happened."""


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
        element = TYPES[dtype]
        self._library, self._key = library, key
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
        if status:
            num_rows, num_outputs, num_inputs, dtype, add = self._key
            library.raise_failure(
                "cublasLtMatmul",
                status,
                f"{num_rows} x {num_inputs} by {num_outputs} x {num_inputs}, {dtype}, {add=}",
            )


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
        self.raise_failure("cublasLtMatmulAlgoCheck", result.state)
        if result.workspace_bytes > WORKSPACE_BYTES:
            raise LibraryFailure(
                f"cublasLtMatmulAlgoCheck: workspace_bytes is {result.workspace_bytes}; at most {WORKSPACE_BYTES} are there"
            )
        return result.workspace_bytes

    def call(self, name: str, *arguments: Any) -> None:
        self.raise_failure(name, getattr(self.functions, name)(*arguments))

    def raise_failure(self, call: str, status: int, product: str = "") -> None:
        """Raises LibraryFailure for any status but success, with the call, the library's name for it and the product."""
        if status:
            name = self.functions.cublasLtGetStatusName(c_int(status)).decode()
            raise LibraryFailure(f"{call}: {name}" + (f" for {product}" if product else ""))


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
