from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_KIND_UNSPECIFIED: _ClassVar[StepKind]
    STEP_KIND_PLAN: _ClassVar[StepKind]
    STEP_KIND_RESULT: _ClassVar[StepKind]
    STEP_KIND_REFUSAL: _ClassVar[StepKind]
    STEP_KIND_READY: _ClassVar[StepKind]

class TensorType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_TYPE_UNSPECIFIED: _ClassVar[TensorType]
    TENSOR_TYPE_INT32: _ClassVar[TensorType]
    TENSOR_TYPE_INT64: _ClassVar[TensorType]
    TENSOR_TYPE_FLOAT32: _ClassVar[TensorType]
    TENSOR_TYPE_UINT8: _ClassVar[TensorType]
STEP_KIND_UNSPECIFIED: StepKind
STEP_KIND_PLAN: StepKind
STEP_KIND_RESULT: StepKind
STEP_KIND_REFUSAL: StepKind
STEP_KIND_READY: StepKind
TENSOR_TYPE_UNSPECIFIED: TensorType
TENSOR_TYPE_INT32: TensorType
TENSOR_TYPE_INT64: TensorType
TENSOR_TYPE_FLOAT32: TensorType
TENSOR_TYPE_UINT8: TensorType

class StepHeader(_message.Message):
    __slots__ = ("protocol_version", "kind", "group_id", "epoch", "step_id", "traceparent", "tensors", "error", "failures")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    kind: StepKind
    group_id: int
    epoch: int
    step_id: int
    traceparent: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorDescriptor]
    error: str
    failures: _containers.RepeatedCompositeFieldContainer[RowFailure]
    def __init__(self, protocol_version: _Optional[int] = ..., kind: _Optional[_Union[StepKind, str]] = ..., group_id: _Optional[int] = ..., epoch: _Optional[int] = ..., step_id: _Optional[int] = ..., traceparent: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorDescriptor, _Mapping]]] = ..., error: _Optional[str] = ..., failures: _Optional[_Iterable[_Union[RowFailure, _Mapping]]] = ...) -> None: ...

class RowFailure(_message.Message):
    __slots__ = ("row", "message", "field")
    ROW_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    row: int
    message: str
    field: str
    def __init__(self, row: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class TensorDescriptor(_message.Message):
    __slots__ = ("name", "type", "shape", "content_hash")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: TensorType
    shape: _containers.RepeatedScalarFieldContainer[int]
    content_hash: bytes
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[TensorType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., content_hash: _Optional[bytes] = ...) -> None: ...
