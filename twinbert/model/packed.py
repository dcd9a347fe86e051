"""A tower as a graph that takes texts packed one behind another, in float32 or with matrix products of int8.

Only attention and pooling know where a text ends: there each has as many places as it has tokens, rounded up
(`twinbert.runs`), and nothing of its neighbours. All else is computed token by token, without padding.

In int8 no text's embedding depends on its company, not by a bit. Every row of activations has its own scale, its
largest value; a weight matrix has one for each column. Products of whole numbers are exact in any order, and what is in
float32 is computed within a row, or within one text at a width of its own.

Inputs, for B texts of S tokens in all, W places each:

    input_ids   int64 [S], or [S, T] of trigrams, 0 being none
    positions   int64 [S]      of tokens in their texts
    places      int64 [B, W]   which token is at each place; past a text's end, its first
    mask        int32 [B, W]   1 where there is a token
    slots       int64 [S]      where in the flat [B · W] each token is

Output: embeddings float32 [B, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from twinbert.bundle import Engine
from twinbert.model.config import TowerConfig
from twinbert.model.tower import Tower

Floats = npt.NDArray[np.float32]

_OPSET = 20
_IR_VERSION = 10  # of that opset
_FUSED = "com.microsoft"  # ONNX Runtime's own operators: several steps in one
_HALF = 128  # zero as uint8: the fast kernels multiply uint8 by int8
_STEPS = 127  # of either sign
_LOWEST = float(np.finfo(np.float32).min)
_NORM_EPSILON = 1e-12  # of torch.nn.functional.normalize


def packed_graph(tower: Tower, engine: Engine) -> bytes:
    """A serialised ONNX graph of the tower; equal weights give equal bytes."""
    config = tower.config
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in tower.state_dict().items()}
    graph = _Graph(weights, engine)
    states = _embeddings(graph, config)
    for layer in range(config.layers):
        states = _layer(graph, config, f"layers.{layer}.", states)
    graph.node("Identity", _head(graph, config, _pooled(graph, config, states)), output="embeddings")
    return graph.serialise(config)


class _Graph:
    """Nodes and constants in the order in which they are made; names are their numbers."""

    def __init__(self, weights: dict[str, Floats], engine: Engine) -> None:
        self.weights, self._engine = weights, engine
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: npt.ArrayLike, kind: type[np.generic] = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind, order="C"), name))
        return name

    def node(self, kind: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:  # noqa: ANN401 - an operator's own
        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def split(self, packed: str, parts: int) -> list[str]:
        names = [f"Split_{len(self._nodes)}_{part}" for part in range(parts)]
        self._nodes.append(helper.make_node("Split", [packed], names, axis=-1, num_outputs=parts))
        return names

    def norm(self, kind: str, name: str, epsilon: float, *inputs: str, bias: str | None = None) -> str:
        """Layer normalisation; the fused kind adds its inputs and a bias first."""
        scales = [self.constant(self.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        if bias is None:
            return self.node(kind, *inputs, *scales, epsilon=epsilon)
        return self.node(kind, *inputs, *scales, bias, domain=_FUSED, epsilon=epsilon)

    def products(self, rows: str, *names: str) -> str:
        """Rows times the weights of linear layers, side by side, without their biases.

        In int8 a row of zeros is divided by zero; whatever whole numbers that gives, its scale makes them zero again.
        """
        matrix_HF = np.concatenate([self.weights[f"{name}.weight"] for name in names]).T
        if self._engine == "float32":
            return self.node("MatMul", rows, self.constant(matrix_HF))
        largest_F = np.abs(matrix_HF).max(0)
        scale_F = np.where(largest_F > 0, largest_F, 1).astype(np.float32) / np.float32(_STEPS)
        matrix = self.constant(np.rint(matrix_HF / scale_F), np.int8)
        step, zero = self.constant(1 / _STEPS), self.constant(_HALF, np.uint8)
        largest = self.node("ReduceMax", self.node("Abs", rows), self.constant([-1], np.int64), keepdims=1)
        quantised = self.node("QuantizeLinear", self.node("Div", rows, largest), step, zero)
        products = self.node(
            "MatMulIntegerToFloat", quantised, matrix, step, self.constant(scale_F), zero, domain=_FUSED
        )
        return self.node("Mul", products, largest)

    def bias(self, *names: str) -> str:
        return self.constant(np.concatenate([self.weights[f"{name}.bias"] for name in names]))

    def serialise(self, config: TowerConfig) -> bytes:
        ids: Sequence[str] = ("S", "T") if config.embedding == "trigrams" else ("S",)
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("positions", TensorProto.INT64, ["S"]),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["B", "W"]),
            helper.make_tensor_value_info("mask", TensorProto.INT32, ["B", "W"]),
            helper.make_tensor_value_info("slots", TensorProto.INT64, ["S"]),
        ]
        outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", config.dimension])]
        graph = helper.make_graph(self._nodes, self._engine, inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        return bytes(model.SerializeToString(deterministic=True))


def _embeddings(graph: _Graph, config: TowerConfig) -> str:
    """First states [S, H]."""
    words = graph.constant(graph.weights["embeddings.word.weight"])
    if config.embedding == "trigrams":
        # Summed over the first axis: one addition after another, wherever a word stands.
        ids_TS = graph.node("Transpose", "input_ids", perm=[1, 0])
        first = graph.constant([0], np.int64)
        word = graph.node("ReduceSum", graph.node("Gather", words, ids_TS), first, keepdims=0)
    else:
        word = graph.node("Gather", words, "input_ids")
    table = graph.weights["embeddings.position"] + graph.weights.get("embeddings.segment", np.float32(0))
    position = graph.node("Gather", graph.constant(table), "positions")
    added = graph.node("Add", word, position)
    return graph.norm("LayerNormalization", "embeddings.norm", config.norm_epsilon, added)


def _layer(graph: _Graph, config: TowerConfig, layer: str, states: str) -> str:
    """The next states [S, H]."""
    attended = graph.products(_attention(graph, config, layer + "attention.", states), layer + "attention.output")
    states = graph.norm(
        "SkipLayerNormalization",
        layer + "attention_norm",
        config.norm_epsilon,
        attended,
        states,
        bias=graph.bias(layer + "attention.output"),
    )
    activated = graph.node("BiasGelu", graph.products(states, layer + "up"), graph.bias(layer + "up"), domain=_FUSED)
    return graph.norm(
        "SkipLayerNormalization",
        layer + "down_norm",
        config.norm_epsilon,
        graph.products(activated, layer + "down"),
        states,
        bias=graph.bias(layer + "down"),
    )


def _attention(graph: _Graph, config: TowerConfig, attention: str, states: str) -> str:
    """What each token takes from the others of its text, [S, H], before the output layer: in float32."""
    names = [attention + part for part in ("query", "key", "value")]
    placed = graph.node("Gather", graph.products(states, *names), "places")  # [B, W, 3H]
    taken = graph.node(
        "MultiHeadAttention",
        *graph.split(placed, 3),
        graph.bias(*names),
        "mask",
        domain=_FUSED,
        num_heads=config.heads,
        mask_filter_value=_LOWEST,
    )
    flat = graph.node("Reshape", taken, graph.constant([-1, config.hidden], np.int64))
    return graph.node("Gather", flat, "slots")


def _pooled(graph: _Graph, config: TowerConfig, states: str) -> str:
    """One vector of each text, [B, H]."""
    placed = graph.node("Gather", states, "places")
    if config.pooling == "cls":
        return graph.node("Gather", placed, graph.constant(0, np.int64), axis=1)
    last, middle = graph.constant([-1], np.int64), graph.constant([1], np.int64)
    weighted = graph.node("Mul", placed, graph.constant(graph.weights["pooling.score.weight"][0]))
    scores = graph.node("ReduceSum", weighted, last, keepdims=0)  # its bias is the same for all: a softmax ignores it
    real = graph.node("Cast", "mask", to=TensorProto.BOOL)
    alpha = graph.node("Softmax", graph.node("Where", real, scores, graph.constant(_LOWEST)), axis=-1)
    return graph.node("Squeeze", graph.node("MatMul", graph.node("Unsqueeze", alpha, middle), placed), middle)


def _head(graph: _Graph, config: TowerConfig, vector: str) -> str:
    """The embeddings [B, D] of pooled vectors."""
    if config.projection is not None:
        projected = graph.node("Add", graph.products(vector, "projection"), graph.bias("projection"))
        vector = graph.node("Tanh", projected)
    if config.normalisation == "l2":
        length = graph.node("ReduceL2", vector, graph.constant([-1], np.int64), keepdims=1)
        vector = graph.node("Div", vector, graph.node("Max", length, graph.constant(_NORM_EPSILON)))
    return vector
