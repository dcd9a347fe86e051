from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Crossing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CROSSING_UNSPECIFIED: _ClassVar[Crossing]
    CROSSING_COSINE: _ClassVar[Crossing]
    CROSSING_RESIDUAL: _ClassVar[Crossing]

class DocumentStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOCUMENT_STATUS_UNSPECIFIED: _ClassVar[DocumentStatus]
    DOCUMENT_STATUS_OK: _ClassVar[DocumentStatus]
    DOCUMENT_STATUS_NOT_FOUND: _ClassVar[DocumentStatus]
    DOCUMENT_STATUS_NOT_SCORED: _ClassVar[DocumentStatus]

class IdType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ID_TYPE_UNSPECIFIED: _ClassVar[IdType]
    ID_TYPE_STRING: _ClassVar[IdType]
    ID_TYPE_INTEGER: _ClassVar[IdType]
CROSSING_UNSPECIFIED: Crossing
CROSSING_COSINE: Crossing
CROSSING_RESIDUAL: Crossing
DOCUMENT_STATUS_UNSPECIFIED: DocumentStatus
DOCUMENT_STATUS_OK: DocumentStatus
DOCUMENT_STATUS_NOT_FOUND: DocumentStatus
DOCUMENT_STATUS_NOT_SCORED: DocumentStatus
ID_TYPE_UNSPECIFIED: IdType
ID_TYPE_STRING: IdType
ID_TYPE_INTEGER: IdType

class ScoreTask(_message.Message):
    __slots__ = ("query", "document_ids", "document_numbers")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    query: str
    document_ids: _containers.RepeatedScalarFieldContainer[str]
    document_numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, query: _Optional[str] = ..., document_ids: _Optional[_Iterable[str]] = ..., document_numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("tasks", "generation", "crossing", "allow_partial")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CROSSING_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[ScoreTask]
    generation: str
    crossing: Crossing
    allow_partial: bool
    def __init__(self, tasks: _Optional[_Iterable[_Union[ScoreTask, _Mapping]]] = ..., generation: _Optional[str] = ..., crossing: _Optional[_Union[Crossing, str]] = ..., allow_partial: bool = ...) -> None: ...

class ScoreResult(_message.Message):
    __slots__ = ("scores", "statuses")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    statuses: _containers.RepeatedScalarFieldContainer[DocumentStatus]
    def __init__(self, scores: _Optional[_Iterable[float]] = ..., statuses: _Optional[_Iterable[_Union[DocumentStatus, str]]] = ...) -> None: ...

class StageTimes(_message.Message):
    __slots__ = ("queue_us", "tokenize_us", "encode_us", "lookup_us", "cross_us", "total_us", "cached_queries")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_US_FIELD_NUMBER: _ClassVar[int]
    CROSS_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    CACHED_QUERIES_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    tokenize_us: int
    encode_us: int
    lookup_us: int
    cross_us: int
    total_us: int
    cached_queries: int
    def __init__(self, queue_us: _Optional[int] = ..., tokenize_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., lookup_us: _Optional[int] = ..., cross_us: _Optional[int] = ..., total_us: _Optional[int] = ..., cached_queries: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("results", "generation", "model", "times")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoreResult]
    generation: str
    model: str
    times: StageTimes
    def __init__(self, results: _Optional[_Iterable[_Union[ScoreResult, _Mapping]]] = ..., generation: _Optional[str] = ..., model: _Optional[str] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ...) -> None: ...

class RetrieveRequest(_message.Message):
    __slots__ = ("queries", "limit", "exact", "generation")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    exact: bool
    generation: str
    def __init__(self, queries: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., exact: bool = ..., generation: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("document_id", "document_number", "score")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    document_number: int
    score: float
    def __init__(self, document_id: _Optional[str] = ..., document_number: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class RetrieveResult(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("results", "generation", "model", "times", "exact")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RetrieveResult]
    generation: str
    model: str
    times: StageTimes
    exact: bool
    def __init__(self, results: _Optional[_Iterable[_Union[RetrieveResult, _Mapping]]] = ..., generation: _Optional[str] = ..., model: _Optional[str] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ..., exact: bool = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Generation(_message.Message):
    __slots__ = ("name", "documents", "encoding", "created_ms", "watermark_ms", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    documents: int
    encoding: str
    created_ms: int
    watermark_ms: int
    model: str
    def __init__(self, name: _Optional[str] = ..., documents: _Optional[int] = ..., encoding: _Optional[str] = ..., created_ms: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("name", "reason", "message")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    message: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("tasks", "candidates", "message_bytes", "id_bytes", "query_bytes", "hits")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUERY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    tasks: int
    candidates: int
    message_bytes: int
    id_bytes: int
    query_bytes: int
    hits: int
    def __init__(self, tasks: _Optional[int] = ..., candidates: _Optional[int] = ..., message_bytes: _Optional[int] = ..., id_bytes: _Optional[int] = ..., query_bytes: _Optional[int] = ..., hits: _Optional[int] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("current", "held", "model", "fingerprint", "crossings", "default_crossing", "calibrated", "dimension", "id_type", "query_max_tokens", "limits", "server_version", "refused")
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CROSSINGS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_CROSSING_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    QUERY_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    current: Generation
    held: _containers.RepeatedCompositeFieldContainer[Generation]
    model: str
    fingerprint: str
    crossings: _containers.RepeatedScalarFieldContainer[Crossing]
    default_crossing: Crossing
    calibrated: bool
    dimension: int
    id_type: IdType
    query_max_tokens: int
    limits: Limits
    server_version: str
    refused: Refusal
    def __init__(self, current: _Optional[_Union[Generation, _Mapping]] = ..., held: _Optional[_Iterable[_Union[Generation, _Mapping]]] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., crossings: _Optional[_Iterable[_Union[Crossing, str]]] = ..., default_crossing: _Optional[_Union[Crossing, str]] = ..., calibrated: bool = ..., dimension: _Optional[int] = ..., id_type: _Optional[_Union[IdType, str]] = ..., query_max_tokens: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ..., refused: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
