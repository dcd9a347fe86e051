"""Servers that embed over HTTP, with the crossing in their caller: infinity on torch and on ONNX Runtime, and mosec.

The caller is as light as can be: connections stay open, and embeddings travel as bytes.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench.driver import System
from bench.load import Call, CallError
from bench.systems.documents import Floats, crossing
from bench.workloads import Task

_MODEL = "minilm"


def infinity(title: str, python: Path, model: Path, documents: Path, *, engine: str) -> System:
    """An infinity server of a Hugging Face directory; its engine is "torch" or "optimum", which is ONNX Runtime."""
    listening = ("--host", "127.0.0.1", "--port", "{port}")
    words = ("v2", "--model-id", str(model), "--served-model-name", _MODEL, "--engine", engine, "--device", "cpu")
    pooling = ("--pooling-method", "mean")  # its ONNX engine would take the first token's state
    return System(
        title=title,
        client=__name__,
        arguments={"kind": "openai", "documents": str(documents)},
        server=[str(python.with_name("infinity_emb")), *words, *pooling, *listening],
        # Local files only, and nothing is reported to its maker.
        environment={"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
    )


def mosec(title: str, python: Path, bundle: Path, documents: Path) -> System:
    """A mosec server of the bundle's ONNX tower: see `bench.systems.mosec_server`."""
    script = Path(__file__).with_name("mosec_server.py")
    listening = ("--address", "127.0.0.1", "--port", "{port}", "--timeout", "10000", "--log-level", "warning")
    return System(
        title=title,
        client=__name__,
        arguments={"kind": "bytes", "documents": str(documents)},
        server=[str(python), str(script), *listening],
        environment={"MOSEC_BUNDLE": str(bundle)},
    )


async def connect(address: str, kind: str, documents: str) -> Call:
    """`openai`: infinity's form; `bytes`: mosec's, of `bench.systems.mosec_server`."""
    cross, pool = crossing(documents), _Pool(address)
    path, encode, decode = _FORMS[kind]

    async def call(tasks: Sequence[Task]) -> list[list[float]]:
        answer = await pool.post(path, encode([query for query, _ in tasks]))
        return cross(tasks, decode(answer).reshape(len(tasks), -1))

    return call


def _openai_request(queries: list[str]) -> bytes:
    return json.dumps({"model": _MODEL, "input": queries, "encoding_format": "base64"}).encode()


def _openai_answer(answer: bytes) -> Floats:
    return np.frombuffer(b"".join(base64.b64decode(one["embedding"]) for one in json.loads(answer)["data"]), np.float32)


def _one_query(queries: list[str]) -> bytes:
    (query,) = queries
    return query.encode()


_Form = tuple[str, Callable[[list[str]], bytes], Callable[[bytes], Floats]]
_FORMS: dict[str, _Form] = {
    "openai": ("/embeddings", _openai_request, _openai_answer),
    "bytes": ("/inference", _one_query, lambda answer: np.frombuffer(answer, np.float32)),
}


class _Pool:
    """HTTP/1.1 connections that stay open, one for each call at a time."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> bytes:
        """The answer's body.

        Raises:
            CallError: another status than 200, or no answer.
        """
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while self._idle:
            try:
                return await self._ask(*self._idle.pop(), request)
            except (OSError, asyncio.IncompleteReadError):
                continue  # the server had closed it: it does so with those that are idle for some seconds
        try:
            return await self._ask(*await asyncio.open_connection(self._host, self._port), request)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise CallError(type(error).__name__) from error

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
        writer.write(request)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        answer = await reader.readexactly(int(headers["content-length"]))
        self._idle.append((reader, writer))
        status = lines[0].split()[1]
        if status != "200":
            raise CallError(f"HTTP {status}")
        return answer
