"""A bundle whose towers cost next to nothing, so that a refresh is measured and not its encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from twinbert.bundle import BUNDLE_JSON, describe_file, fingerprint, to_json


def averaging_bundle(bundle: Path, to: Path) -> None:
    """A copy of a WordPiece bundle with other towers: the mean of the tokens' random embeddings, scaled to length 1."""
    shutil.copytree(bundle, to)
    configuration: dict[str, Any] = json.loads((to / BUNDLE_JSON).read_bytes())
    files, towers, tokenizer = (configuration[name] for name in ("files", "towers", "tokenizer"))
    model = _averaging(tokenizer["vocabulary"], configuration["dimension"])
    for name in {tower["file"] for tower in towers.values()}:
        onnx.save(model, to / name)
        files[name] |= describe_file(to / name)
    configuration["fingerprint"] = fingerprint(
        document_onnx=files[towers["document"]["file"]]["sha256"],
        tokenizer=files[tokenizer["file"]]["sha256"],
        max_tokens=towers["document"]["max_tokens"],
        pooling=configuration["pooling"],
        normalisation=configuration["normalisation"],
        dimension=configuration["dimension"],
    )
    (to / BUNDLE_JSON).write_bytes(to_json(configuration))


def _averaging(vocabulary: int, dimension: int) -> onnx.ModelProto:
    table = np.random.default_rng(0).standard_normal((vocabulary, dimension), dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_BL1"]),
        helper.make_node("Mul", ["states", "mask_BL1"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["embeddings"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "averaging",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "L"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dimension])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # what onnxruntime reads may be older than what onnx writes
    return model
