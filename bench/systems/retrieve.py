"""Ours: `Retrieve` of a scorer that `bench.systems.scorer` started, for one caller."""

from __future__ import annotations

from collections.abc import Sequence

from bench.load import Call, CallError
from bench.workloads import CANDIDATES, Task
from twinbert.client import ScorerClient
from twinbert.errors import RemoteError


async def connect(address: str) -> Call:
    """The best of all documents, as many as there are candidates."""
    client = ScorerClient(address)

    async def retrieve(tasks: Sequence[Task]) -> list[list[float]]:
        try:
            reply = client.retrieve([query for query, _ in tasks], CANDIDATES)
        except RemoteError as error:
            raise CallError(error.code) from error
        return [found.scores.tolist() for found in reply.results]

    return retrieve
