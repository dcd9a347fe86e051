from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tower(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOWER_UNSPECIFIED: _ClassVar[Tower]
    TOWER_QUERY: _ClassVar[Tower]
    TOWER_DOCUMENT: _ClassVar[Tower]

class RefreshMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFRESH_MODE_UNSPECIFIED: _ClassVar[RefreshMode]
    REFRESH_MODE_FULL: _ClassVar[RefreshMode]
    REFRESH_MODE_DELTA: _ClassVar[RefreshMode]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT32: _ClassVar[Encoding]
    ENCODING_FLOAT16: _ClassVar[Encoding]
    ENCODING_UINT8: _ClassVar[Encoding]
TOWER_UNSPECIFIED: Tower
TOWER_QUERY: Tower
TOWER_DOCUMENT: Tower
REFRESH_MODE_UNSPECIFIED: RefreshMode
REFRESH_MODE_FULL: RefreshMode
REFRESH_MODE_DELTA: RefreshMode
ENCODING_UNSPECIFIED: Encoding
ENCODING_FLOAT32: Encoding
ENCODING_FLOAT16: Encoding
ENCODING_UINT8: Encoding

class EncodeRequest(_message.Message):
    __slots__ = ("tower", "texts")
    TOWER_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    tower: Tower
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tower: _Optional[_Union[Tower, str]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("embeddings", "dimension", "model", "fingerprint")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    embeddings: bytes
    dimension: int
    model: str
    fingerprint: str
    def __init__(self, embeddings: _Optional[bytes] = ..., dimension: _Optional[int] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class RefreshStart(_message.Message):
    __slots__ = ("mode", "encoding", "force")
    MODE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    mode: RefreshMode
    encoding: Encoding
    force: bool
    def __init__(self, mode: _Optional[_Union[RefreshMode, str]] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., force: bool = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("id", "number", "text", "time_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    number: int
    text: str
    time_ms: int
    def __init__(self, id: _Optional[str] = ..., number: _Optional[int] = ..., text: _Optional[str] = ..., time_ms: _Optional[int] = ...) -> None: ...

class DocumentBatch(_message.Message):
    __slots__ = ("documents", "deleted_ids", "deleted_numbers")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    DELETED_IDS_FIELD_NUMBER: _ClassVar[int]
    DELETED_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    deleted_ids: _containers.RepeatedScalarFieldContainer[str]
    deleted_numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ..., deleted_ids: _Optional[_Iterable[str]] = ..., deleted_numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class RefreshCommit(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RefreshRequest(_message.Message):
    __slots__ = ("start", "batch", "commit")
    START_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    start: RefreshStart
    batch: DocumentBatch
    commit: RefreshCommit
    def __init__(self, start: _Optional[_Union[RefreshStart, _Mapping]] = ..., batch: _Optional[_Union[DocumentBatch, _Mapping]] = ..., commit: _Optional[_Union[RefreshCommit, _Mapping]] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("document_id", "position", "reason")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    position: int
    reason: str
    def __init__(self, document_id: _Optional[str] = ..., position: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RefreshResponse(_message.Message):
    __slots__ = ("received", "encoded", "reused", "deleted", "rejected", "rejections", "generation", "duplicates", "absent")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    received: int
    encoded: int
    reused: int
    deleted: int
    rejected: int
    rejections: _containers.RepeatedCompositeFieldContainer[Rejection]
    generation: str
    duplicates: int
    absent: int
    def __init__(self, received: _Optional[int] = ..., encoded: _Optional[int] = ..., reused: _Optional[int] = ..., deleted: _Optional[int] = ..., rejected: _Optional[int] = ..., rejections: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ..., generation: _Optional[str] = ..., duplicates: _Optional[int] = ..., absent: _Optional[int] = ...) -> None: ...
