"""A bundle at work: text → token ids → embeddings → scores, with ONNX Runtime and without torch.

Shapes: Q queries, N texts or pairs, D dimension.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinbert import processor
from twinbert.bundle import BUNDLE_JSON, Bundle, Engine, Tower
from twinbert.cosine import Cosine, Crossing
from twinbert.errors import BundleError, CrossingMissingError, UsageError
from twinbert.fields import Fields
from twinbert.runs import MAX_RUN_TOKENS, PACKED, PADDED, Run, packed, padded
from twinbert.tokenizer import TokenBatch, Tokenizer, open_tokenizer

# Its official builds report to their maker over the network, and keep an identifier in the home directory, unless this
# is set before they are imported. Nothing leaves the host that its operator did not ask for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

__all__ = ["MAX_RUN_TOKENS", "Floats", "Runtime", "TokenBatch"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

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

    Attributes:
        bundle: what runs.
        engine: the kind that computes the query tower.
        query_digest: of what shapes query embeddings: runtimes that share it encode a query alike.

    Args:
        bundle: what to run.
        towers: the towers to load; towers with the same weights are loaded once.
        threads: threads that compute one call. The calling thread is one of them.
        engine: the kind that computes the query tower. Documents are always encoded in float32.

    Raises:
        BundleError: a file of the bundle cannot be loaded, or it has no such engine.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        towers: Sequence[Tower] = ("query",),
        threads: int = 1,
        engine: Engine = "float32",
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; at least one thread has to compute")
        self.bundle, self.engine = bundle, engine
        self.query_digest = bundle.query_digest(engine)
        sessions: dict[str, onnxruntime.InferenceSession] = {}  # by sha256

        def session(file: str) -> onnxruntime.InferenceSession:
            digest = bundle.sha256(file)
            if digest not in sessions:
                sessions[digest] = _open_session(bundle.file(file), threads)
            return sessions[digest]

        kind, tokenizer = bundle.tokenizer.kind, bundle.file(bundle.tokenizer.file)
        files = {tower: bundle.tower_file(tower, engine) for tower in towers}
        self._towers = {
            tower: _Tower(
                tokenizer=open_tokenizer(kind, tokenizer, max_tokens=bundle.max_tokens(tower)),
                session=session(file),
                runs=packed if tower == "query" and engine in bundle.packed else padded,
            )
            for tower, file in files.items()
        }
        crossings = {name: session(entry.file) for name, entry in bundle.crossings.items()}
        for tower, opened in self._towers.items():
            inputs = PACKED if opened.runs is packed else PADDED
            _require(bundle, files[tower], opened.session, inputs, "embeddings")
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

        Of what is computed at most a tenth is padding (`twinbert.runs`). A text's embedding is the same in any company:
        by the int8 engine bit for bit, by float32 to about 1e-7, since which kernels compute a matrix product depends
        on its size.
        """
        opened = self._tower(tower)
        embeddings_ND = np.empty((len(tokens), self.bundle.dimension), dtype=np.float32)
        for texts, feeds in opened.runs(tokens):
            embeddings_ND[texts] = opened.session.run(["embeddings"], feeds)[0]
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
    runs: Callable[[TokenBatch], Iterator[Run]]


def _require(bundle: Bundle, file: str, session: onnxruntime.InferenceSession, inputs: set[str], output: str) -> None:
    """Raises unless a graph is what bundle.json takes it for."""
    found, shapes = {one.name for one in session.get_inputs()}, {one.name: one.shape for one in session.get_outputs()}
    width = shapes[output][-1] if shapes.get(output) else None
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
    except (ValueError, *_LOAD_ERRORS) as error:  # the former: numpy's, of scores of another shape
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
    # Without VNNI int8 products are added in 16 bits, which overflow, unless this is set; with VNNI it only costs time.
    if not processor.flags() & {"avx512_vnni", "avx_vnni"}:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # fatal only: errors are raised
    # A model can name other files that hold its weights, anywhere. None of ours does, and no checksum would cover them:
    # loaded from bytes, with nothing where such files would be, none is ever read.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except (OSError, UnicodeDecodeError, *_LOAD_ERRORS) as error:  # a message that quotes a name which is no UTF-8
        raise BundleError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}") from error
