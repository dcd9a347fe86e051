"""A mosec server of a bundle's query tower: the text of a query in, its embedding as bytes out. Runs where mosec is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from mosec import Server, Worker
from tokenizers import Tokenizer

_CORES = len(os.sched_getaffinity(0))


class Embedder(Worker):  # type: ignore[misc]  # mosec is not in the checker's environment
    """One engine of one thread, which embeds what has come in together."""

    def __init__(self) -> None:
        super().__init__()
        bundle = Path(os.environ["MOSEC_BUNDLE"])
        query = json.loads((bundle / "bundle.json").read_bytes())["towers"]["query"]
        self._tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._tokenizer.enable_truncation(query["max_tokens"])
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(bundle / query["file"]), options)

    def deserialize(self, data: bytes) -> str:
        """The query."""
        return data.decode()

    def serialize(self, data: Any) -> bytes:  # noqa: ANN401  as mosec declares it: an array here
        """The embedding, float32."""
        embedding: bytes = data.tobytes()
        return embedding

    def forward(self, data: list[str]) -> list[Any]:
        """Embeddings of the queries of a batch."""
        encoded = self._tokenizer.encode_batch(data)
        feeds = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        }
        return list(self._session.run(["embeddings"], feeds)[0])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embedder, num=_CORES, max_batch_size=16, max_wait_time=1)
    server.run()
