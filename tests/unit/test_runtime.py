"""A bundle at work: embeddings and scores that do not depend on company, from several threads at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinbert import runs
from twinbert import runtime as runtime_module
from twinbert.bundle import BUNDLE_JSON, TOWERS, Bundle, Tower, to_json
from twinbert.errors import BundleError, CrossingMissingError, UsageError
from twinbert.runtime import Runtime
from twinbert.samples import DOCUMENTS, QUERIES

TEXTS = [*QUERIES, *DOCUMENTS]


@pytest.fixture(scope="module", params=["tiny_bundle", "other_bundle"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Both towers of each bundle."""
    return Runtime(Bundle.open(request.getfixturevalue(request.param)), towers=TOWERS)


@pytest.mark.parametrize("tower", TOWERS)
def test_company_does_not_change_an_embedding(runtime: Runtime, tower: Tower) -> None:
    """A text alone has the embedding that it has among others of other lengths, to 1e-6, in the order of the texts."""
    together_ND = runtime.encode(TEXTS, tower)
    alone_ND = np.concatenate([runtime.encode([text], tower) for text in TEXTS])
    assert together_ND.shape == (len(TEXTS), 32)
    assert together_ND.dtype == np.float32
    np.testing.assert_allclose(together_ND, alone_ND, rtol=0, atol=1e-6)
    np.testing.assert_allclose(runtime.encode(TEXTS[::-1], tower)[::-1], together_ND, rtol=0, atol=1e-6)


def test_padding_does_not_change_an_embedding(tiny_bundle: Path) -> None:
    """The exported tower ignores what is masked, however much of it there is and whatever its ids are."""
    runtime = Runtime(Bundle.open(tiny_bundle))
    tower = onnxruntime.InferenceSession(tiny_bundle / "query.onnx", providers=["CPUExecutionProvider"])
    tokens = runtime.tokenize(["running shoes"])
    input_ids_BL = np.full((3, 16), 7, dtype=np.int64)
    attention_mask_BL = np.ones_like(input_ids_BL)
    input_ids_BL[1, :4], attention_mask_BL[1, 4:] = tokens.ids[0], 0
    padded_BD = tower.run(None, {"input_ids": input_ids_BL, "attention_mask": attention_mask_BL})[0]
    np.testing.assert_allclose(padded_BD[1:2], runtime.embed(tokens), rtol=0, atol=1e-6)


@given(st.lists(st.integers(1, 600), max_size=60))
def test_padding_is_at_most_a_tenth(lengths: list[int]) -> None:
    """Every text is in one run; a run is one text, or within its limit; a tenth of all that is computed is padding."""
    lengths_N = np.array(lengths, dtype=np.int64)
    split = runs.padded_runs(lengths_N)
    assert sorted(np.concatenate([*split, np.empty(0, np.int64)]).tolist()) == list(range(len(lengths)))
    computed = [len(run) * int(lengths_N[run].max()) for run in split]
    assert sum(computed) - lengths_N.sum() <= 0.1 * sum(computed)
    assert all(tokens <= runs.MAX_RUN_TOKENS or len(run) == 1 for tokens, run in zip(computed, split, strict=True))


@pytest.mark.parametrize(
    ("lengths", "count"),
    [([5, 6], 1), ([4, 5], 1), ([3, 6], 2), ([8, 9, 7, 9, 8, 9, 7, 9], 1), ([20] * 20 + [21] * 20, 2), ([4, 60], 2)],
)
def test_like_lengths_share_a_run(lengths: list[int], count: int) -> None:
    """Texts are together where the padding is small and another run would cost more than it, and only there."""
    assert len(runs.padded_runs(np.array(lengths))) == count


def test_shared_towers_are_loaded_once(other_bundle: Path, tiny_bundle: Path) -> None:
    """Towers with the same weights share one session, and so its memory; different towers do not."""
    for path, sessions in ((other_bundle, 1), (tiny_bundle, 2)):
        runtime = Runtime(Bundle.open(path), towers=TOWERS)
        assert len({id(tower.session) for tower in runtime._towers.values()}) == sessions


def test_nothing_encodes_to_nothing(runtime: Runtime) -> None:
    """No texts give no embeddings, of the right width."""
    assert runtime.encode([]).shape == (0, 32)


def test_threads_share_a_runtime(runtime: Runtime) -> None:
    """Threads that encode and cross at once get what they would get alone."""
    documents_ND = runtime.encode(DOCUMENTS, "document")

    def answer(query: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        task_N = np.zeros(len(documents_ND), dtype=np.int64)
        return runtime.cross(runtime.encode([query]), documents_ND, task_N)

    alone = [answer(query) for query in QUERIES]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(answer, [*QUERIES] * 10))
    np.testing.assert_array_equal(together, alone * 10)


def test_a_score_is_the_sigmoid_of_a_scaled_cosine(runtime: Runtime) -> None:
    """p = σ(10 cos − 5) for each document and the query that its task names; for a zero vector the cosine is 0."""
    random = np.random.default_rng(7)
    queries_QD = random.standard_normal((3, 32), dtype=np.float32)
    documents_ND = 5 * random.standard_normal((50, 32), dtype=np.float32)
    documents_ND[49] = queries_QD[2] = 0
    task_N = random.integers(0, 3, 50)
    lengths_N = np.linalg.norm(queries_QD, axis=1)[task_N] * np.linalg.norm(documents_ND, axis=1)
    cosine_N = (queries_QD[task_N] * documents_ND).sum(1) / np.where(lengths_N > 0, lengths_N, 1)
    expected_N = 1 / (1 + np.exp(5 - 10 * cosine_N))
    np.testing.assert_allclose(runtime.cross(queries_QD, documents_ND, task_N), expected_N, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        runtime.cross(queries_QD, documents_ND, task_N, "cosine"), runtime.cross(queries_QD, documents_ND, task_N)
    )


def test_company_does_not_change_a_score(runtime: Runtime) -> None:
    """A pair has the same score, bit for bit, alone and among a thousand, wherever it stands among them."""
    random = np.random.default_rng(8)
    queries_QD = random.standard_normal((7, 32), dtype=np.float32)
    documents_ND = random.standard_normal((1003, 32), dtype=np.float32)
    task_N = random.integers(0, 7, len(documents_ND))
    together_N = runtime.cross(queries_QD, documents_ND, task_N)
    for n in range(0, len(documents_ND), 17):
        query = queries_QD[task_N[n]][None]
        assert runtime.cross(query, documents_ND[n : n + 1], np.zeros(1, np.int64)).tolist() == [together_N[n]]


def test_no_pairs_have_no_scores(runtime: Runtime) -> None:
    """Crossing nothing gives nothing, whether or not there are queries."""
    nothing_ND, task_N = np.empty((0, 32), np.float32), np.empty(0, np.int64)
    assert runtime.cross(nothing_ND, nothing_ND, task_N).shape == (0,)
    assert runtime.cross(np.ones((2, 32), np.float32), nothing_ND, task_N).dtype == np.float32


def test_what_a_runtime_lacks_is_named(tiny_bundle: Path) -> None:
    """A tower that was not loaded, a crossing that the bundle lacks and a senseless setting are refused."""
    bundle = Bundle.open(tiny_bundle)
    runtime = Runtime(bundle)
    assert (runtime.max_tokens("query"), runtime.max_tokens("document")) == (16, 32)
    with pytest.raises(UsageError, match="has not loaded the document tower"):
        runtime.encode(["a"], "document")
    vectors = np.ones((1, 32), np.float32)
    with pytest.raises(CrossingMissingError, match="has no crossing layer 'residual'; it has cosine"):
        runtime.cross(vectors, vectors, np.zeros(1, np.int64), "residual")
    with pytest.raises(UsageError, match="threads is 0"):
        Runtime(bundle, threads=0)


def test_a_graph_that_cannot_be_loaded_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where a damaged file gets past unverified, loading it is a BundleError and nothing else."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    size = (copy / "query.onnx").stat().st_size
    (copy / "query.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(BundleError, match=r"query\.onnx: onnxruntime .* cannot load it"):
        Runtime(Bundle.open(copy, verify=False))


def test_a_graph_that_vanishes_is_named(tmp_path: Path) -> None:
    """A file removed between the look at the bundle and its loading is a BundleError too."""
    with pytest.raises(BundleError, match=r"absent\.onnx: onnxruntime .* cannot load it"):
        runtime_module._open_session(tmp_path / "absent.onnx", 1)


def test_the_tokenizer_is_of_the_kind_that_the_bundle_names(tiny_bundle: Path, tmp_path: Path) -> None:
    """A bundle of a kind that this version lacks is refused, not read as one that it has."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    configuration = json.loads((copy / BUNDLE_JSON).read_bytes())
    configuration["tokenizer"]["kind"] = "letters"
    (copy / BUNDLE_JSON).write_bytes(to_json(configuration))
    with pytest.raises(BundleError, match=r"tokenizer\.json: is a 'letters' tokenizer"):
        Runtime(Bundle.open(copy))


def test_serving_needs_no_torch(tiny_bundle: Path) -> None:
    """Encoding and crossing import neither torch nor onnx."""
    program = (
        "import sys; from twinbert.bundle import Bundle; from twinbert.runtime import Runtime; "
        f"Runtime(Bundle.open({str(tiny_bundle)!r})).encode(['a']); "
        "sys.exit(' '.join({'torch', 'onnx', 'onnxscript', 'transformers'} & sys.modules.keys()) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
