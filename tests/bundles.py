"""Bundles that differ from another in one tower, as a training or a broken export makes them: quick, and really run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from twinbert.bundle import BUNDLE_JSON, describe_file, fingerprint, to_json

Weights = npt.NDArray[np.float32]


def retrained(weights: Weights) -> Weights:
    """Nearly the same, as after a little more training."""
    random = np.random.default_rng(1)
    noise: Weights = random.standard_normal(weights.shape, dtype=np.float32)
    return weights + np.float32(0.02 * weights.std()) * noise


def shuffled(weights: Weights) -> Weights:
    """The right numbers in the wrong places."""
    return np.random.default_rng(2).permutation(weights.reshape(-1)).reshape(weights.shape)


def constant(weights: Weights) -> Weights:
    """Whatever the text, the same embedding."""
    return np.full_like(weights, 0.01)


def variant(bundle: Path, to: Path, tower: str, change: Callable[[Weights], Weights]) -> Path:
    """A copy of a bundle with the weight matrices of one of its two towers changed."""
    shutil.copytree(bundle, to)
    file = to / f"{tower}.onnx"
    model = onnx.load(file)
    for initializer in model.graph.initializer:
        weights = numpy_helper.to_array(initializer)
        if weights.dtype == np.float32 and weights.ndim > 1:
            initializer.CopyFrom(numpy_helper.from_array(change(weights).astype(np.float32), initializer.name))
    onnx.save(model, file)
    configuration: dict[str, Any] = json.loads((to / BUNDLE_JSON).read_bytes())
    files = configuration["files"]
    files[file.name] |= describe_file(file)
    configuration["fingerprint"] = fingerprint(
        document_onnx=files[configuration["towers"]["document"]["file"]]["sha256"],
        tokenizer=files[configuration["tokenizer"]["file"]]["sha256"],
        max_tokens=configuration["towers"]["document"]["max_tokens"],
        pooling=configuration["pooling"],
        normalisation=configuration["normalisation"],
        dimension=configuration["dimension"],
    )
    (to / BUNDLE_JSON).write_bytes(to_json(configuration))
    return to
