"""A scorer that files of tests share; those that need another have their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from scorer_cases import DOCUMENTS

from tests.servers import Server, refresh, running, write_documents
from twinbert.v1 import scorer_pb2_grpc


@pytest.fixture(scope="session")
def store(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of DOCUMENTS, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("scorer")
    refresh(tiny_bundle, folder / "store", write_documents(folder / "documents.jsonl", DOCUMENTS))
    return folder / "store"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, store: Path) -> Iterator[Server]:
    """A scorer of that store."""
    with running("serve", tiny_bundle, store) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[scorer_pb2_grpc.ScorerServiceStub]:
    """What calls it."""
    with grpc.insecure_channel(server.address) as channel:
        yield scorer_pb2_grpc.ScorerServiceStub(channel)
