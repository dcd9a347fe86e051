"""A bundle at work: text → token ids → embeddings → scores, with ONNX Runtime and without torch.

Shapes: Q queries, N texts or pairs, B texts in one run, L tokens, D dimension.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinbert.bundle import BUNDLE_JSON, Bundle, Tower
from twinbert.cosine import Cosine, Crossing
from twinbert.errors import BundleError, CrossingMissingError, UsageError
from twinbert.fields import Fields
from twinbert.tokenizer import TokenBatch, Tokenizer, open_tokenizer

# Its official builds report to their maker over the network, and keep an identifier in the home directory, unless this
# is set before they are imported. Nothing leaves the host that its operator did not ask for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

__all__ = ["Floats", "Runtime", "TokenBatch"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Of a run's padding: a share of the tokens that it computes, or tokens in all, since another run costs as much as 12
# tokens (MiniLM on one thread: 2.5 ms a run and 0.21 ms a token). So 2 to 16 queries of mixed lengths take 3 to 13 %
# less time than with the share alone; by that cost they are within 2 % of the best division into runs.
MAX_PADDING = 0.1
FREE_PADDING = 12
MAX_RUN_TOKENS = 1024  # more is no faster on a CPU

# These share no base class.
_LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class Runtime:
    """The towers and crossing layers of a bundle. Every method may be called from several threads at once.

    Args:
        bundle: what to run.
        towers: the towers to load; towers with the same weights are loaded once.
        threads: threads that compute one call. The calling thread is one of them.

    Raises:
        BundleError: a file of the bundle cannot be loaded.
    """

    def __init__(self, bundle: Bundle, *, towers: Sequence[Tower] = ("query",), threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; at least one thread has to compute")
        self.bundle = bundle
        sessions: dict[str, onnxruntime.InferenceSession] = {}  # by sha256

        def session(file: str) -> onnxruntime.InferenceSession:
            digest = bundle.sha256(file)
            if digest not in sessions:
                sessions[digest] = _open_session(bundle.file(file), threads)
            return sessions[digest]

        kind, tokenizer = bundle.tokenizer.kind, bundle.file(bundle.tokenizer.file)
        self._towers = {
            tower: _Tower(
                tokenizer=open_tokenizer(kind, tokenizer, max_tokens=bundle.max_tokens(tower)),
                session=session(bundle.towers[tower].file),
            )
            for tower in towers
        }
        crossings = {name: session(entry.file) for name, entry in bundle.crossings.items()}
        for tower, opened in self._towers.items():
            _require(bundle, bundle.towers[tower].file, opened.session, {"input_ids", "attention_mask"}, "embeddings")
        for name, crossing in crossings.items():
            _require(bundle, bundle.crossings[name].file, crossing, {"queries", "documents", "task"}, "scores")
        self._crossings = {name: _crossing(bundle, name, opened) for name, opened in crossings.items()}

    def max_tokens(self, tower: Tower) -> int:
        """Tokens that a tower reads, special tokens included."""
        return self.bundle.max_tokens(tower)

    def tokenize(self, texts: Sequence[str], tower: Tower = "query") -> TokenBatch:
        """Token ids of texts that are not blank; those longer than the tower reads are truncated and marked so."""
        return self._tower(tower).tokenizer.encode(texts)

    def embed(self, tokens: TokenBatch, tower: Tower = "query") -> Floats:
        """Embeddings [N, D] of texts of any lengths, in their order.

        Texts of like length share a run, in which at most a tenth of the tokens are padding, or as many as cost less
        than another run. A text's embedding is the same in any company to about 1e-7: which kernels compute a matrix
        product depends on its size.
        """
        session = self._tower(tower).session
        embeddings_ND = np.empty((len(tokens), self.bundle.dimension), dtype=np.float32)
        for run in _runs(tokens.lengths):
            input_ids, attention_mask_BL = tokens.take(run).padded()
            feeds = {"input_ids": input_ids, "attention_mask": attention_mask_BL}
            embeddings_ND[run] = session.run(["embeddings"], feeds)[0]
        return embeddings_ND

    def encode(self, texts: Sequence[str], tower: Tower = "query") -> Floats:
        """Embeddings [N, D] of texts that are not blank."""
        return self.embed(self.tokenize(texts, tower), tower)

    def cross(self, queries_QD: Floats, documents_ND: Floats, task_N: Ints, crossing: str | None = None) -> Floats:
        """Probabilities [N] in [0, 1]: document n against query task_N[n].

        A pair's score is the same in any company, bit for bit; but for the residual crossing, whose graph is run, where
        D is no multiple of 4, so that not every row is aligned alike: there to about 1e-7.

        Args:
            queries_QD: embeddings of the query tower.
            documents_ND: embeddings of the document tower, under the bundle's fingerprint.
            task_N: int64, which query each document is a candidate of.
            crossing: name of the crossing layer; None: the bundle's default.

        Raises:
            CrossingMissingError: the bundle lacks this crossing.
        """
        name = self.bundle.default_crossing if crossing is None else crossing
        if name not in self._crossings:
            there = ", ".join(self._crossings)
            raise CrossingMissingError(f"{self.bundle.path}: has no crossing layer {name!r}; it has {there}")
        if not len(documents_ND):
            return np.empty(0, dtype=np.float32)
        return self._crossings[name](queries_QD, documents_ND, task_N)

    def _tower(self, tower: Tower) -> _Tower:
        if tower not in self._towers:
            raise UsageError(f"this runtime has not loaded the {tower} tower; name it in `towers` when opening one")
        return self._towers[tower]


@dataclass(frozen=True, slots=True)
class _Tower:
    tokenizer: Tokenizer
    session: onnxruntime.InferenceSession


def _require(bundle: Bundle, file: str, session: onnxruntime.InferenceSession, inputs: set[str], output: str) -> None:
    """Raises unless a graph is what bundle.json takes it for."""
    found, shapes = {one.name for one in session.get_inputs()}, {one.name: one.shape for one in session.get_outputs()}
    width = shapes[output][-1] if output in shapes else None
    as_stated = width == bundle.dimension or output != "embeddings" or isinstance(width, str)
    if found != inputs or output not in shapes or not as_stated:
        raise BundleError(
            f"{bundle.path / file}: has inputs {', '.join(sorted(found))} and outputs {shapes}, and bundle.json wants "
            f"{', '.join(sorted(inputs))} and {output} of dimension {bundle.dimension}; export the bundle again"
        )


def _crossing(bundle: Bundle, name: str, session: onnxruntime.InferenceSession) -> Crossing:
    """What crosses: the exported graph, or for a cosine what is proved to do the same."""

    def graph(queries_QD: Floats, documents_ND: Floats, task_N: Ints) -> Floats:
        feeds = {"queries": queries_QD, "documents": documents_ND, "task": task_N}
        scores_N: Floats = session.run(["scores"], feeds)[0]
        return scores_N

    if name != "cosine":
        return graph
    path = bundle.path / BUNDLE_JSON
    fields = Fields(path, bundle.configuration, remedy="export the bundle again").fields("crossings").fields(name)
    cosine, file = Cosine(fields.number("a"), fields.number("b")), bundle.path / bundle.crossings[name].file
    try:
        proved = cosine.proved(graph, bundle.dimension)
    except _LOAD_ERRORS as error:
        raise BundleError(f"{file}: cannot cross embeddings of dimension {bundle.dimension}: {error}") from error
    if not proved:
        raise BundleError(
            f"{file}: does not compute the cosine crossing with the a and b of {path.name}; export the bundle again"
        )
    return cosine


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait take cores from whoever answers RPCs: with 2 threads and a query every 15 ms,
    # 1.3 cores are busy instead of 0.4.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Both keep memory for the largest run and for every shape seen; without them runs are as fast and memory is stable.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # fatal only: errors are raised
    # A model can name other files that hold its weights, anywhere. None of ours does, and no checksum would cover them:
    # loaded from bytes, with nothing where such files would be, none is ever read.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except (OSError, *_LOAD_ERRORS) as error:
        raise BundleError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}") from error


def _runs(lengths_N: Ints) -> Iterator[Ints]:
    """Splits texts into runs: the positions of texts of like length, shortest first."""
    order_N = np.argsort(lengths_N, kind="stable")
    start, tokens = 0, 0  # of the run being filled: where it starts in `order_N`, its tokens without padding
    for stop, length in enumerate(lengths_N[order_N].tolist()):
        computed = (stop + 1 - start) * length  # were this text in the run too
        padding = computed - tokens - length
        if stop > start and (computed > MAX_RUN_TOKENS or padding > max(MAX_PADDING * computed, FREE_PADDING)):
            yield order_N[start:stop]
            start, tokens = stop, 0
        tokens += length
    if len(order_N):
        yield order_N[start:]
