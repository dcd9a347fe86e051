"""What a good engineer builds in an afternoon: a sync gRPC server, torch eager, and one LMDB `get` a document.

It answers our `Score`, so that it is called as ours is. Weights are those of a Hugging Face directory; the model
computes in inference mode, pads to the longest query of a request only, and keeps to one thread a request, since
requests come in together.

    python -m bench.systems.textbook PORT MODEL DOCUMENTS

Shapes: Q queries, L tokens, N candidates, D dimension.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import lmdb
import numpy as np
import torch
import transformers

from bench.driver import System
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

_THREADS = 16


def system(title: str, model: Path, documents: Path) -> System:
    """A server of a model's directory and an LMDB environment made by `write_documents`."""
    words = [sys.executable, "-m", __name__, "{port}", str(model), str(documents)]
    return System(title=title, client="bench.systems.scorer", server=words)


def write_documents(path: Path, saved: Path) -> Path:
    """An LMDB environment of id → embedding, from the file that `bench.systems.documents` reads."""
    with (
        np.load(saved) as columns,
        lmdb.open(str(path), map_size=1 << 34) as environment,
        environment.begin(write=True) as transaction,
    ):
        for id_, row_D in zip(columns["ids"].tolist(), columns["embeddings"], strict=True):
            transaction.put(id_.encode(), row_D.tobytes())
    return path


class Textbook(scorer_pb2_grpc.ScorerServiceServicer):
    """`Score`: encode the query, get each document, multiply."""

    def __init__(self, model: Path, documents: Path) -> None:
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        self._model: Any = transformers.AutoModel.from_pretrained(model).eval()
        self._documents = lmdb.open(str(documents), readonly=True, lock=False)

    @torch.inference_mode()
    def _encode(self, queries: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(queries, padding=True, truncation=True, max_length=256, return_tensors="pt")
        states_QLD = self._model(**tokens).last_hidden_state
        mask_QL1 = tokens["attention_mask"].unsqueeze(-1)
        mean_QD = (states_QLD * mask_QL1).sum(1) / mask_QL1.sum(1)
        return torch.nn.functional.normalize(mean_QD, dim=1)

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:
        """Cosines of the candidates of each task."""
        queries_QD = self._encode([task.query for task in request.tasks]).numpy()
        results = []
        with self._documents.begin(buffers=True) as transaction:
            for task, query_D in zip(request.tasks, queries_QD, strict=True):
                rows = [np.frombuffer(transaction.get(id_.encode(), b""), np.float32) for id_ in task.document_ids]
                scores_N = np.stack(rows) @ query_D
                results.append(pb.ScoreResult(scores=scores_N.tolist()))
        return pb.ScoreResponse(results=results)


def serve(port: int, model: Path, documents: Path) -> None:
    """Serves until killed."""
    torch.set_num_threads(1)
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    scorer_pb2_grpc.add_ScorerServiceServicer_to_server(
        Textbook(model, documents),  # type: ignore[abstract]  # the stubs' own: what is not overridden is unimplemented
        server,
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
