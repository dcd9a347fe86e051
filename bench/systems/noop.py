"""A gRPC server that does nothing: the floor under every RPC. It answers any request with so many bytes.

`Call` answers at once. `Wait` first sleeps in a thread for `PAUSE_S`: the floor under an RPC whose caller, and whose
event loop, have to be woken after a pause.

    python -m bench.systems.noop PORT BYTES
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from bench.driver import System
from bench.load import Call
from bench.systems.scorer import OPTIONS
from bench.workloads import Task

PAUSE_S = 0.005

_SERVICE = "twinbert.bench.Noop"
_Context = grpc.aio.ServicerContext[Any, Any]


def system(title: str, *, request: int, answer: int, paused: bool = False) -> System:
    """A no-op method with messages of so many bytes."""
    arguments = {"size": request, "method": "Wait" if paused else "Call"}
    server = [sys.executable, "-m", __name__, "{port}", str(answer)]
    return System(title=title, client=__name__, arguments=arguments, server=server)


async def connect(address: str, size: int, method: str) -> Call:
    """A request of `size` bytes whatever is asked for; no scores."""
    channel = grpc.aio.insecure_channel(address, OPTIONS)
    method_: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_SERVICE}/{method}")
    request = bytes(size)

    async def call(_tasks: Sequence[Task]) -> list[list[float]]:
        await method_(request)
        return []

    return call


def blocking(address: str, size: int, method: str) -> Call:
    """The same, for one caller."""
    channel = grpc.insecure_channel(address, OPTIONS)
    method_: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_SERVICE}/{method}")
    request = bytes(size)

    async def call(_tasks: Sequence[Task]) -> list[list[float]]:
        method_(request)
        return []

    return call


async def serve(port: int, size: int) -> None:
    """Serves until killed."""
    answer, loop = bytes(size), asyncio.get_running_loop()

    async def call(_request: bytes, _context: _Context) -> bytes:
        return answer

    async def wait(_request: bytes, _context: _Context) -> bytes:
        await loop.run_in_executor(None, time.sleep, PAUSE_S)
        return answer

    server = grpc.aio.server()
    answered = grpc.unary_unary_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Call": answered(call), "Wait": answered(wait)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
