"""TwinBERT → bundle: each tower and crossing layer as an ONNX graph, proved against the model before it is published.

The same weights and versions give the same bytes, so the same `fingerprint` and, on one kind of machine, `model`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from store.files import sync_directory, sync_file
from twinbert import __version__
from twinbert.bundle import BUNDLE_JSON, FORMAT, TOWERS, Bundle, describe_file, fingerprint, to_json
from twinbert.errors import ExportError, UsageError
from twinbert.model.checkpoint import save_weights
from twinbert.model.config import Calibration, CrossingKind
from twinbert.model.twin import TwinBert
from twinbert.quality import encodings, parity, rounded
from twinbert.runtime import Runtime
from twinbert.tokenizer import TriLetter, open_tokenizer_file

PARITY_LIMIT = 1e-4
OPSET = 20  # the first with Gelu, which ONNX Runtime fuses with the bias before it
_EXPORTERS = ("torch", "onnx", "onnxscript", "onnxruntime")  # packages whose versions shape the graphs or their parity
_MAX_PROTOBUF = 2**31 - 2**20  # protobuf's 2 GiB, less what a graph needs beside its weights


def export(
    twin: TwinBert,
    output: Path,
    *,
    tokenizer: Path,
    source: Mapping[str, str],
    calibration: Mapping[CrossingKind, Calibration] | None = None,
) -> Bundle:
    """Writes a bundle: all of it appears at `output` in one step, or nothing does.

    Args:
        twin: the model; left as it is.
        output: the bundle's directory, which must not exist yet.
        tokenizer: tokenizer.json of either kind; WordPiece's becomes the bundle's without padding and truncation.
        source: where the weights came from, in words of the caller's: goes into bundle.json.
        calibration: of the crossing layers that were calibrated on labelled data. It becomes part of their graphs and
            of the weights in the bundle: the bundle's model is the calibrated one. Its fields go into bundle.json, with
            the errors on the pairs that it was fitted on, where it is of a kind that knows them.

    Raises:
        UsageError: `output` exists, or `calibration` names a crossing that the model has not.
        ExportError: the bundle cannot be written, or differs from the model by more than `PARITY_LIMIT`.
        BundleError: the tokenizer cannot be read.
    """
    calibration = calibration or {}
    if surplus := sorted(calibration.keys() - set(twin.config.crossings)):
        raise UsageError(f"calibration: names {surplus[0]}; the model has {', '.join(twin.config.crossings)}")
    check_tokenizer(twin, tokenizer)
    twin = copy.deepcopy(twin).cpu().eval()
    for kind, fitted in calibration.items():
        twin.crossing(kind).calibrate(fitted)
    with building(output) as directory:
        _write_files(twin, directory, tokenizer)
        configuration = _configuration(twin, directory, source=source, calibration=calibration)
        # The runtime that measures quality needs a bundle: this one is rewritten once its quality is known.
        (directory / BUNDLE_JSON).write_bytes(to_json(configuration))
        configuration["quality"] = _quality(twin, Bundle.open(directory, verify=False))
        (directory / BUNDLE_JSON).write_bytes(to_json(configuration))
    return Bundle.open(output)


@contextlib.contextmanager
def building(output: Path) -> Iterator[Path]:
    """A new directory to make a bundle in: it becomes `output` in one step, durable, or vanishes with an error.

    Raises:
        UsageError: `output` exists.
        ExportError: the bundle cannot be written.
    """
    output = output.absolute()
    if os.path.lexists(output):
        raise UsageError(f"{output}: exists already; remove it or choose another output")
    directory = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        directory.mkdir(parents=True)
        yield directory
        for path in directory.iterdir():
            sync_file(path)
        sync_directory(directory)
        directory.rename(output)
        sync_directory(output.parent)
    except OSError as error:
        raise ExportError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def check_tokenizer(twin: TwinBert, path: Path) -> None:
    """Refuses a tokenizer that towers cannot read with.

    Raises:
        ExportError: it is of the other kind, has more ids than there are embeddings, or lacks [CLS] for cls pooling.
        BundleError: it cannot be read.
    """
    config = twin.config
    tokenizer = open_tokenizer_file(path, max_tokens=min(config.query_max_tokens, config.document_max_tokens))
    wanted = "trigrams" if tokenizer.kind == TriLetter.kind else "tokens"
    if config.document.embedding != wanted:
        raise ExportError(f"{path}: is of kind {tokenizer.kind}; the towers embed {config.document.embedding}")
    embeddings = min(config.query.vocabulary, config.document.vocabulary)
    if tokenizer.vocabulary > embeddings:
        raise ExportError(
            f"{path}: has {tokenizer.vocabulary} ids, a tower {embeddings} word embeddings; they are not of one model"
        )
    if config.document.pooling == "cls" and not tokenizer.starts_with_cls:
        raise ExportError(f"{path}: starts texts with no [CLS], whose state cls pooling takes; make it with cls=True")


def _write_files(twin: TwinBert, directory: Path, tokenizer: Path) -> None:
    trigrams = twin.config.document.embedding == "trigrams"
    (directory / "tokenizer.json").write_bytes(tokenizer.read_bytes() if trigrams else _unpadded(tokenizer))
    save_weights(twin, directory / "model.safetensors")
    shape = (2, 3, 4) if trigrams else (2, 3)
    tokens = {
        "input_ids": (torch.ones(shape, dtype=torch.int64), "BLT"[: len(shape)]),
        "attention_mask": (torch.ones(shape[:2], dtype=torch.int64), "BL"),
    }
    document = _to_onnx(twin.document, tokens, "embeddings")
    query = document if twin.config.shared else _to_onnx(twin.query, tokens, "embeddings")
    (directory / "document.onnx").write_bytes(document)
    if query == document:
        with contextlib.suppress(OSError):  # a file system without links holds the bytes twice
            (directory / "query.onnx").hardlink_to(directory / "document.onnx")
    if not (directory / "query.onnx").exists():
        (directory / "query.onnx").write_bytes(query)
    vectors = torch.ones(3, twin.config.document.dimension)
    for kind in twin.config.crossings:
        pairs = {
            "queries": (vectors[:2], "Q"),
            "documents": (vectors, "N"),
            "task": (torch.zeros(3, dtype=torch.int64), "N"),
        }
        (directory / f"crossing.{kind}.onnx").write_bytes(_to_onnx(twin.crossing(kind), pairs, "scores"))


def _unpadded(tokenizer: Path) -> bytes:
    """A WordPiece tokenizer.json without its padding and truncation, in one serialisation.

    Whoever reads a bundle, in any language, is to get texts at their real lengths: the towers say how long they may be.
    """
    content = json.loads(tokenizer.read_bytes())
    return to_json(content | dict.fromkeys(content.keys() & {"padding", "truncation"}))


def _to_onnx(module: nn.Module, inputs: Mapping[str, tuple[Tensor, str]], output: str) -> bytes:
    """A module as a serialised graph. An input is an example and the names of its first dimensions, which may vary."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    if size > _MAX_PROTOBUF:
        raise ExportError(
            f"a {type(module).__name__} has {size:,} bytes of weights; an ONNX file holds less than 2 GiB"
        )
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(example for example, _ in inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(dict(enumerate(names)) for _, names in inputs.values()),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _strip(graph)
    return graph.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its own developers: whether it worked is measured."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Removes what does not compute: stack traces with paths of this machine, and the exporter's names of shapes."""
    model.ClearField("producer_version")  # a CPU and a GPU build of one torch version differ in it
    model.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _configuration(
    twin: TwinBert, directory: Path, *, source: Mapping[str, str], calibration: Mapping[CrossingKind, Calibration]
) -> dict[str, Any]:
    config, document = twin.config, twin.config.document
    towers = {"query": (config.query, config.query_max_tokens), "document": (document, config.document_max_tokens)}
    tokenizer = open_tokenizer_file(directory / "tokenizer.json", max_tokens=config.document_max_tokens)
    files = {path.name: describe_file(path) for path in sorted(directory.iterdir())}
    files["model.safetensors"]["optional"] = True
    return {
        "format": FORMAT,
        "source": dict(source),
        "tokenizer": {
            "kind": tokenizer.kind,
            "file": "tokenizer.json",
            "vocabulary": tokenizer.vocabulary,
            **tokenizer.description,
        },
        "towers": {
            name: {
                "file": f"{name}.onnx",
                "max_tokens": max_tokens,
                "longer_texts": "truncated",
                "architecture": dataclasses.asdict(tower),
            }
            for name, (tower, max_tokens) in towers.items()
        },
        "shared_towers": config.shared,
        "pooling": document.pooling,
        "normalisation": document.normalisation,
        "activation": document.activation,
        "dimension": document.dimension,
        "crossings": {
            kind: {
                "file": f"crossing.{kind}.onnx",
                "calibrated": kind in calibration,
                **({"calibration": dataclasses.asdict(calibration[kind])} if kind in calibration else {}),
                **twin.crossing(kind).description(),
            }
            for kind in config.crossings
        },
        "default_crossing": config.crossings[0],
        "fingerprint": fingerprint(
            document_onnx=files["document.onnx"]["sha256"],
            tokenizer=files["tokenizer.json"]["sha256"],
            max_tokens=config.document_max_tokens,
            pooling=document.pooling,
            normalisation=document.normalisation,
            dimension=document.dimension,
        ),
        "files": files,
        "versions": {"twinbert": __version__, **{name: _version(name) for name in _EXPORTERS}},
    }


def _version(package: str) -> str:
    """Without the local part: builds of one version for CPU and GPU give the same bundle."""
    return metadata.version(package).partition("+")[0]


def _quality(twin: TwinBert, bundle: Bundle) -> dict[str, Any]:
    runtime = Runtime(bundle, towers=TOWERS)
    differences = parity(twin, runtime)
    for what, difference in differences.items():
        if not difference <= PARITY_LIMIT:  # also where it is NaN
            raise ExportError(
                f"{what} of the exported graphs differ from the model's by {difference}, more than {PARITY_LIMIT}; "
                "the weights are broken, or these versions of torch and onnxruntime do not agree"
            )
    recorded = {what: rounded(difference) for what, difference in differences.items()}
    return {"parity": {**recorded, "limit": PARITY_LIMIT}, "encodings": encodings(runtime)}
