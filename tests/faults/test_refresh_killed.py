"""A refresh that is killed at any moment: the old generation or the new one, never a mixture."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder_server.documents import Document
from encoder_server.refresh import Refresh
from store.store import Store
from tests.servers import COMMAND, write_documents
from twinbert.bundle import Bundle
from twinbert.runtime import Runtime

KILLS = 20
DOCUMENTS = 1500
CHANGED = 1200


def corpus(version: int) -> dict[str, str]:
    """Every version has a few ids and most texts of its own, the others are those of the version before."""
    return {
        f"d{number}": f"list {number} of {version if number % DOCUMENTS < CHANGED else 'shoes'}"
        for number in range(version, version + DOCUMENTS)
    }


def start(bundle: Path, store: Path, documents: Path) -> subprocess.Popen[str]:
    """`twinbert refresh`, as far as having opened the bundle."""
    # --force: nearly all texts change from version to version, which the swap gate may refuse.
    words = ["refresh", "--bundle", str(bundle), "--store", str(store), "--documents", str(documents), "--force"]
    process = subprocess.Popen([COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(process, "started")
    return process


def wait_for(process: subprocess.Popen[str], event: str) -> None:
    assert process.stderr is not None
    while json.loads(process.stderr.readline())["event"] != event:
        pass


class Corpora:
    """The versions of the corpus, and what their documents encode to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._embeddings: dict[int, Any] = {}

    def assert_current(self, store: Path, version: int) -> None:
        """The current generation is exactly this version, each document with its own embedding."""
        documents, opened = corpus(version), Store(store)
        if version not in self._embeddings:
            self._embeddings[version] = self._runtime.encode(list(documents.values()), "document")
        generation = opened.open(opened.current())
        try:
            assert generation.manifest.documents == len(documents)
            located = generation.locate(list(documents))
            assert located.found.all()
            np.testing.assert_allclose(generation.read(located), self._embeddings[version], rtol=0, atol=1e-5)
        finally:
            generation.close()

    def refresh(self, store: Path, version: int) -> None:
        """A refresh that nobody kills."""
        with Refresh(Store(store), self._runtime) as refresh:
            refresh.add(Document(key, text, None) for key, text in corpus(version).items())
            refresh.commit()


@pytest.mark.timeout(300)
def test_killed_at_twenty_moments(tiny_bundle: Path, tmp_path: Path) -> None:
    """After SIGKILL at a random moment CURRENT names the old generation or the new one, every row of which is its
    document's embedding, and the next refresh succeeds.
    """
    store, chance = tmp_path / "store", random.Random(2002)
    corpora = Corpora(Runtime(Bundle.open(tiny_bundle), towers=("query", "document")))
    files = [write_documents(tmp_path / f"{version}.jsonl", corpus(version)) for version in range(KILLS + 2)]
    corpora.refresh(store, 0)
    with start(tiny_bundle, store, files[1]) as process:
        began = time.monotonic()
        wait_for(process, "published")
        lasts = time.monotonic() - began
    for version in range(2, KILLS + 2):
        before = Store(store).current()
        with start(tiny_bundle, store, files[version]) as process:
            time.sleep(chance.random() * lasts)
            process.kill()
        corpora.assert_current(store, version - 1 if Store(store).current() == before else version)
        corpora.refresh(store, version)
        corpora.assert_current(store, version)
