"""Faults that need a model of some weight and seconds of load, in small: the tiny bundle with a slow query tower, and
loads of a second. Their promises hold as they do in full, but those of speed, for which the suite has too little time
and shares its cores.
"""

from __future__ import annotations

import json
import math
import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from faults import attacks, deadlines, overload, soak, workers
from faults.corpora import texts
from faults.fault import Attempt
from faults.serving import Stored
from tests.servers import refresh, write_documents
from twinbert.bundle import BUNDLE_JSON, describe_file, to_json

WIDTH = 1024


def slowed(bundle: Path, to: Path, products: int) -> Path:
    """A copy of a bundle whose query tower does much that comes to nothing: products of matrices."""
    shutil.copytree(bundle, to)
    file = to / "query.onnx"
    model = onnx.load(file)
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["quick" if name == output else name for name in node.output]
        node.input[:] = ["quick" if name == output else name for name in node.input]
    for name, shape in (("widen", (32, WIDTH)), ("square", (WIDTH, WIDTH)), ("narrow", (WIDTH, 32))):
        graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    matrices = ["widen", *["square"] * products, "narrow"]
    states = ["quick", *(f"slow{number}" for number in range(len(matrices)))]
    graph.node.extend(
        helper.make_node("MatMul", [state, matrix], [following])
        for state, matrix, following in zip(states, matrices, states[1:], strict=False)
    )
    graph.node.append(helper.make_node("Add", ["quick", states[-1]], [output]))
    file.unlink()
    onnx.save(model, file)
    configuration = json.loads((to / BUNDLE_JSON).read_bytes())
    configuration["files"][file.name] |= describe_file(file)
    (to / BUNDLE_JSON).write_bytes(to_json(configuration))
    return to


def stored(folder: Path, bundle: Path, *, products: int = 4) -> Stored:
    """A store of a few hundred documents, with the slow bundle: by default 8 queries take some milliseconds."""
    slow, documents = slowed(bundle, folder / "slow", products), texts(0, 200)
    refresh(slow, folder / "store", write_documents(folder / "documents.jsonl", documents))
    return Stored(slow, folder / "store", documents)


def _overload(folder: Path, bundle: Path) -> AbstractContextManager[Attempt]:
    return overload.attempts(stored(folder, bundle), seconds=0.6, least=0.0, refused_s=math.inf, recovery=math.inf)


def _attacks(folder: Path, bundle: Path) -> AbstractContextManager[Attempt]:
    return attacks.attempts(folder, bundle, ever=math.inf)


def _workers(folder: Path, bundle: Path) -> AbstractContextManager[Attempt]:
    return workers.attempts(folder, bundle, documents=90, restart_s=60.0)


def _deadlines(folder: Path, bundle: Path) -> AbstractContextManager[Attempt]:
    return deadlines.attempts(stored(folder, bundle, products=20))  # 64 queries are to keep the engine busy


ATTACKS = replace(attacks.ATTACKS, prepare=_attacks)
DEADLINES = replace(deadlines.DEADLINES, prepare=_deadlines)
OVERLOAD = replace(overload.OVERLOAD, prepare=_overload)
SOAK = replace(soak.SOAK, prepare=lambda folder, bundle: soak.attempts(stored(folder, bundle), seconds=0.5))
WORKERS = replace(workers.WORKERS, prepare=_workers)
