"""The cosine crossing in numpy against the exported graph, which is what it has to be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from store.encoding import ENCODINGS, codec
from twinbert.bundle import BUNDLE_JSON, Bundle, describe_file, to_json
from twinbert.cosine import Cosine
from twinbert.errors import BundleError
from twinbert.runtime import Runtime

D = 32  # of the tiny bundle
GRAPH = "crossing.cosine.onnx"


def changed(bundle: Path, to: Path, *, width: int = D, **fields: Any) -> Bundle:
    """A copy whose bundle.json tells other things of the cosine crossing, or whose graph wants another dimension."""
    shutil.copytree(bundle, to)
    configuration = json.loads((to / BUNDLE_JSON).read_bytes())
    configuration["crossings"]["cosine"].update(fields)
    graph = onnx.load(to / GRAPH)
    for vectors in graph.graph.input[:2]:
        vectors.type.tensor_type.shape.dim[1].dim_value = width
    onnx.save(graph, to / GRAPH)
    configuration["files"][GRAPH] |= describe_file(to / GRAPH)
    (to / BUNDLE_JSON).write_bytes(to_json(configuration))
    return Bundle.open(to)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("queries", [1, 5])
def test_it_is_the_exported_graph(tiny_bundle: Path, encoding: str, queries: int) -> None:
    """Scores of rows as each encoding gives them back are those of the graph, to 1e-6."""
    graph = onnxruntime.InferenceSession(tiny_bundle / GRAPH, providers=["CPUExecutionProvider"])
    random, stored = np.random.default_rng(3), codec(encoding, D, fixed_step=False)
    documents_ND = random.standard_normal((400, D), dtype=np.float32)
    documents_ND /= np.linalg.norm(documents_ND, axis=1, keepdims=True)
    documents_ND = stored.decode(*stored.encode(documents_ND))
    queries_QD = random.standard_normal((queries, D), dtype=np.float32)
    queries_QD[0] = documents_ND[0]  # whose cosine is 1
    task_N = random.integers(0, queries, 400)
    scores_N = Runtime(Bundle.open(tiny_bundle)).cross(queries_QD, documents_ND, task_N)
    expected_N = graph.run(None, {"queries": queries_QD, "documents": documents_ND, "task": task_N})[0]
    np.testing.assert_allclose(scores_N, expected_N, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimension", [1, 3, 16, 33, 64, 67, 384, 385, 1023])
def test_company_and_place_do_not_change_a_bit(dimension: int) -> None:
    """A pair's score is bit for bit the same alone, among others of its query or of several, and wherever in memory."""
    random, cosine = np.random.default_rng(dimension), Cosine(20.0, -8.0)
    queries_QD = random.standard_normal((5, dimension), dtype=np.float32)
    documents_ND = random.standard_normal((131, dimension), dtype=np.float32)
    task_N = random.integers(0, 5, 131)
    together_N = cosine(queries_QD, documents_ND, task_N)
    for query in range(5):
        of_query = cosine(queries_QD[query : query + 1], documents_ND[task_N == query], np.zeros(131, np.int64))
        assert of_query.tolist() == together_N[task_N == query].tolist()
    shifted = np.empty(dimension + 1, np.float32)[1:]
    for n in range(0, 131, 7):
        shifted[:] = documents_ND[n]
        alone = cosine(queries_QD[task_N[n]][None], shifted[None], np.zeros(1, np.int64))
        assert alone.tolist() == [together_N[n]]


def test_extremes_are_probabilities() -> None:
    """However sure a crossing is, and of zeros, scores are numbers from 0 to 1, with no warning of an overflow."""
    vectors_ND = np.array([[1, 0], [-1, 0], [0, 0], [1e-15, 0]], np.float32)
    scores_N = Cosine(500.0, 0.0)(vectors_ND[:1], vectors_ND, np.zeros(4, np.int64))
    assert scores_N[[0, 2]].tolist() == [1, 0.5]
    assert 0 <= scores_N[1] < 1e-37
    assert scores_N[3] == Cosine(500.0, 0.0)(vectors_ND[3:], vectors_ND[:1], np.zeros(1, np.int64))[0]


@pytest.mark.parametrize("wrong", [{"a": 10.1}, {"b": -4.9}])
def test_a_bundle_that_says_otherwise_is_refused(tiny_bundle: Path, tmp_path: Path, wrong: dict[str, float]) -> None:
    """Where bundle.json and the graph disagree about the cosine crossing, the bundle does not open."""
    with pytest.raises(BundleError, match=r"crossing\.cosine\.onnx: does not compute the cosine crossing with the a"):
        Runtime(changed(tiny_bundle, tmp_path / "copy", **wrong))


def test_a_bundle_without_its_parameters_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """bundle.json has to tell a and b."""
    with pytest.raises(BundleError, match=r"crossings\.cosine\.a is None, it must be a number"):
        Runtime(changed(tiny_bundle, tmp_path / "copy", a=None))


def test_a_graph_of_another_dimension_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """A crossing that cannot take the towers' embeddings is noticed when the bundle opens, not by the first request."""
    with pytest.raises(BundleError, match=r"crossing\.cosine\.onnx: cannot cross embeddings of dimension 32"):
        Runtime(changed(tiny_bundle, tmp_path / "copy", width=31))
