"""ONNX graphs that are well-formed messages and no good: what shifted bytes hardly ever give."""

from __future__ import annotations

import random

import onnx

_SIZES = (0, 1, 2, 3, 31, 33, -1, 1 << 31, 1 << 40, (1 << 63) - 1)


def changed_graph(content: bytes, chance: random.Random) -> bytes:
    """A graph with one or two of its nodes, weights or inputs changed."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(chance.choice((1, 1, 2))):
        chance.choice((_rewired, _removed, _other_operator, _other_attribute, _other_weights, _other_type))(
            model.graph, chance
        )
    return model.SerializeToString()


def _rewired(graph: onnx.GraphProto, chance: random.Random) -> None:
    """An input of a node is another value: perhaps a later one, or its own output."""
    node = chance.choice(graph.node)
    values = [name for one in graph.node for name in (*one.input, *one.output)]
    if node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice(values)


def _removed(graph: onnx.GraphProto, chance: random.Random) -> None:
    part = chance.choice([part for part in (graph.node, graph.initializer, graph.input, graph.output) if part])
    del part[chance.randrange(len(part))]


def _other_operator(graph: onnx.GraphProto, chance: random.Random) -> None:
    node = chance.choice(graph.node)
    node.op_type = chance.choice([one.op_type for one in graph.node] + ["Loop", "Resize", "Identity", "NoSuch", "LSTM"])


def _other_attribute(graph: onnx.GraphProto, chance: random.Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    if not nodes:
        return
    attribute = chance.choice(chance.choice(nodes).attribute)
    if attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(_SIZES)
    else:
        attribute.i, attribute.f = chance.choice(_SIZES), chance.choice((float("nan"), 1e38, -1.0))


def _other_weights(graph: onnx.GraphProto, chance: random.Random) -> None:
    """A size, a type, some bytes or the values of an initialiser, such as the shape that a node reshapes to."""
    weights = chance.choice(graph.initializer)
    match chance.randrange(4):
        case 0 if weights.dims:
            weights.dims[chance.randrange(len(weights.dims))] = chance.choice(_SIZES)
        case 1:
            weights.data_type = chance.randrange(1, 24)
        case 2:
            weights.raw_data = weights.raw_data[: chance.randrange(len(weights.raw_data) + 1)]
        case _:
            size = 8 if weights.data_type == onnx.TensorProto.INT64 else 4
            values = [chance.choice(_SIZES).to_bytes(8, "little", signed=True)[:size] for _ in range(16)]
            weights.raw_data = b"".join(values)[: len(weights.raw_data)] + weights.raw_data[16 * size :]


def _other_type(graph: onnx.GraphProto, chance: random.Random) -> None:
    """An input or output has another type or size."""
    kind = chance.choice([*graph.input, *graph.output]).type.tensor_type
    if kind.shape.dim and chance.random() < 0.5:
        chance.choice(kind.shape.dim).dim_value = chance.choice(_SIZES)
    else:
        kind.elem_type = chance.randrange(1, 24)
