"""The Python client for rankers, and for those who feed the document encoder.

    from twinbert.client import ScorerClient, Task

    with ScorerClient("127.0.0.1:50051") as scorer:
        reply = scorer.score(Task("red shoes", ["sku-1", "sku-2"]))
        result = reply.results[0]
        result.scores[result.found]  # the others are NaN

A client holds one channel, which reconnects by itself and may be shared by threads (asyncio: by the tasks of one loop):
make one a process and keep it. Every call has a deadline, and one that finds its server gone is tried again, on another
server if there are several. Whatever goes wrong is a `twinbert.errors.TwinbertError`: `RemoteError` when the call
failed, `InvalidRequestError` when the request could not even be written.

    channel     addresses, TLS and tokens, deadlines, retries, and errors → RemoteError
    messages    requests and replies as Python values: what sync and asyncio share
    scorer      ScorerClient, AsyncScorerClient
    encoder     EncoderClient
"""

from __future__ import annotations

from twinbert.client.channel import tls_credentials
from twinbert.client.encoder import Deletion, Document, Embeddings, EncoderClient, Progress, Rejection
from twinbert.client.messages import (
    CrossingName,
    Description,
    Generation,
    Limits,
    QueryHits,
    Refusal,
    RetrieveReply,
    ScoreReply,
    StageTimes,
    Status,
    Task,
    TaskScores,
)
from twinbert.client.scorer import AsyncScorerClient, ScorerClient

__all__ = [
    "AsyncScorerClient",
    "CrossingName",
    "Deletion",
    "Description",
    "Document",
    "Embeddings",
    "EncoderClient",
    "Generation",
    "Limits",
    "Progress",
    "QueryHits",
    "Refusal",
    "Rejection",
    "RetrieveReply",
    "ScoreReply",
    "ScorerClient",
    "StageTimes",
    "Status",
    "Task",
    "TaskScores",
    "tls_credentials",
]
