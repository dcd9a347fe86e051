"""Bundles: bundle.json changed, which its digests find; and tokenizers and graphs changed by somebody who makes the
digests right, opened and run as a server does before it serves with them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from faults.inputs.graphs import changed_graph
from faults.inputs.mutation import altered_json, mutated, overwritten
from twinbert.bundle import BUNDLE_JSON, TOWERS, Bundle, describe_file, fingerprint, to_json
from twinbert.errors import BundleError
from twinbert.runtime import Runtime

_TEXTS = ["red shoes [SEP] é\0", "a" * 3000, "list of running shoes"]
# Of ONNX Runtime; numpy's, of results that do not fit; and tokenizers', which has no class of its own.
_RUN_ERRORS = {ort.Fail, ort.InvalidArgument, ort.RuntimeException, ort.NotImplemented, ValueError, Exception}


class Bundles:
    """Copies of a bundle, in a folder that is made for them.

    Args:
        bundle: the good one.
        folder: where to.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self._path = Path(shutil.copytree(bundle, folder))
        self._good = {path.name: path.read_bytes() for path in bundle.iterdir()}
        self._graphs = sorted(name for name in self._good if name.endswith(".onnx"))

    def read_descriptions(self, chance: random.Random, count: int) -> Counter[str]:
        """Opens bundles whose bundle.json is mutated."""
        outcomes = Counter[str]()
        for _ in range(count):
            self._write(BUNDLE_JSON, altered_json(self._good[BUNDLE_JSON], chance))
            try:
                Bundle.open(self._path)
                outcomes["bundle.json: opened"] += 1
            except BundleError:
                outcomes["bundle.json: BundleError"] += 1
        self._restore(BUNDLE_JSON)
        return outcomes

    def run_tokenizers(self, chance: random.Random, count: int) -> Counter[str]:
        """Runs bundles with mutated tokenizers."""
        outcomes = Counter[str]()
        name = self._configuration()["tokenizer"]["file"]
        for _ in range(count):
            self._forge(name, altered_json(self._good[name], chance))
            outcomes[f"tokenizer: {self._run()}"] += 1
        self._restore(name)
        return outcomes

    def run_graphs(self, chance: random.Random, count: int) -> Counter[str]:
        """Runs bundles with mutated towers and crossings."""
        outcomes = Counter[str]()
        for _ in range(count):
            name = chance.choice(self._graphs)
            change = chance.choice((mutated, overwritten, changed_graph, changed_graph))
            self._forge(name, change(self._good[name], chance))
            outcomes[f"graph: {self._run()}"] += 1
            self._restore(name)
        return outcomes

    def _run(self) -> str:
        """What comes of opening a bundle and scoring with it."""
        try:
            runtime = Runtime(Bundle.open(self._path), towers=TOWERS)
        except BundleError:
            return "BundleError"
        try:
            queries_QD, documents_ND = runtime.encode(_TEXTS), runtime.encode(_TEXTS, "document")
            runtime.cross(queries_QD, documents_ND, np.zeros(len(_TEXTS), np.int64))
        except Exception as error:
            if type(error) not in _RUN_ERRORS:
                raise
            return "opened, and failed as it ran"
        return "opened and ran"

    def _forge(self, name: str, content: bytes) -> None:
        """Puts a file into the bundle, and makes its digests right."""
        self._write(name, content)
        configuration = self._configuration()
        configuration["files"][name] |= describe_file(self._path / name)
        tower, files = configuration["towers"]["document"], configuration["files"]
        configuration["fingerprint"] = fingerprint(
            document_onnx=files[tower["file"]]["sha256"],
            tokenizer=files[configuration["tokenizer"]["file"]]["sha256"],
            max_tokens=tower["max_tokens"],
            **{key: configuration[key] for key in ("pooling", "normalisation", "dimension")},
        )
        self._write(BUNDLE_JSON, to_json(configuration))

    def _configuration(self) -> dict[str, Any]:
        configuration: dict[str, Any] = json.loads(self._good[BUNDLE_JSON])
        return configuration

    def _restore(self, name: str) -> None:
        for one in (name, BUNDLE_JSON):
            self._write(one, self._good[one])

    def _write(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.unlink(missing_ok=True)  # equal towers may be one file with two names
        path.write_bytes(content)
