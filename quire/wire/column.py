"""The columns of a message: little-endian buffers of one element type each, described by name in the step header.

Knows descriptors and bytes, not what any column means. Whatever is read is checked against its descriptor first.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Literal, cast

from quire.v1 import step_pb2

assert sys.byteorder == "little", "the wire is little-endian and its buffers are used in place"

_TYPE_OF_CODE = {
    "i": step_pb2.TENSOR_TYPE_INT32,
    "q": step_pb2.TENSOR_TYPE_INT64,
    "f": step_pb2.TENSOR_TYPE_FLOAT32,
    "B": step_pb2.TENSOR_TYPE_UINT8,
}
_CODE_OF_TYPE = {tensor_type: code for code, tensor_type in _TYPE_OF_CODE.items()}
_SIZE_OF_CODE = {code: array(code).itemsize for code in _TYPE_OF_CODE}

Buffer = bytes | bytearray | memoryview
Column = memoryview

_NO_COLUMN: Column = memoryview(b"")
"""What a column that did not travel is read as: most columns of most messages."""


class FrameError(ValueError):
    """A message that is not what the step protocol allows."""


class ColumnWriter:
    """Collects columns and their descriptors; empty columns do not travel."""

    def __init__(self, header: step_pb2.StepHeader) -> None:
        self._header = header
        self._buffers: list[Buffer] = []

    def add(self, name: str, code: str, values: Sequence[int] | Sequence[float], width: int = 1) -> None:
        if values:
            self._describe(name, code, len(values), width)
            self._buffers.append(array(code, values).tobytes())

    def add_packed(self, name: str, values: "array[int]", width: int = 1) -> None:
        """A column of int32 that is packed already, if need be as unsigned ones below 2^31, which have the same bytes."""
        assert values.typecode in "iI", (
            f"column {name} is packed as {values.typecode!r}; it must be 'i' or 'I'"
        )
        if values:
            self._describe(name, "i", len(values), width)
            self._buffers.append(values.tobytes())

    def frames(self) -> list[Buffer]:
        return [self._header.SerializeToString(), *self._buffers]

    def _describe(self, name: str, code: str, num_values: int, width: int) -> None:
        num_rows, rest = divmod(num_values, width)
        assert rest == 0, f"column {name} holds {num_values} values in rows of {width}"
        shape = (num_rows,) if width == 1 else (num_rows, width)
        self._header.tensors.add(name=name, type=_TYPE_OF_CODE[code], shape=shape)


class ColumnReader:
    """Hands out columns by name, checked against their descriptors."""

    def __init__(self, header: step_pb2.StepHeader, buffers: Sequence[Buffer]) -> None:
        if len(buffers) != len(header.tensors):
            raise FrameError(
                f"header describes {len(header.tensors)} tensors, message carries {len(buffers)}"
            )
        self._columns: dict[str, tuple[str, int, Column]] = {}
        for descriptor, buffer in zip(header.tensors, buffers, strict=True):
            self._columns[descriptor.name] = _checked_column(descriptor, buffer)

    def take(self, name: str, code: str, width: int = 1) -> list[int]:
        return self._take(name, code, width).tolist()

    def take_packed(self, name: str, code: Literal["i", "I"], width: int = 1) -> "array[int]":
        """A column of int32 that stays packed, for what is long and not looked at one by one."""
        values = array(code)
        values.frombytes(self._take(name, "i", width).tobytes())
        return values

    def take_bytes(self, name: str) -> bytes:
        return self._take(name, "B", 1).tobytes()

    def take_floats(self, name: str, width: int = 1) -> list[float]:
        return cast(list[float], self._take(name, "f", width).tolist())

    def _take(self, name: str, code: str, width: int) -> Column:
        found = self._columns.pop(name, None)
        if found is None:
            return _NO_COLUMN
        found_code, found_width, column = found
        if (found_code, found_width) != (code, width):
            raise FrameError(
                f"tensor {name!r} has element type {found_code!r} and {found_width} columns, "
                f"the protocol wants {code!r} and {width}"
            )
        return column

    def finish(self) -> None:
        if self._columns:
            raise FrameError(f"unknown tensors {sorted(self._columns)}")


def _checked_column(descriptor: step_pb2.TensorDescriptor, buffer: Buffer) -> tuple[str, int, Column]:
    code = _CODE_OF_TYPE.get(descriptor.type)
    if code is None:
        raise FrameError(f"tensor {descriptor.name!r} has unknown type {descriptor.type}")
    shape = descriptor.shape[:]
    if len(shape) not in (1, 2):
        raise FrameError(f"tensor {descriptor.name!r} has {len(shape)} dimensions, at most 2 are allowed")
    num_rows, width = shape if len(shape) == 2 else (shape[0], 1)
    raw = memoryview(buffer)
    if raw.nbytes != num_rows * width * _SIZE_OF_CODE[code]:
        raise FrameError(f"tensor {descriptor.name!r} of shape {shape} has {raw.nbytes} bytes")
    return code, width, raw.cast("B").cast(cast('Literal["i"]', code))
