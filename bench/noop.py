"""A gRPC server that does nothing: the floor under every RPC. It answers any request with so many bytes.

`Call` answers at once. `Wait` first sleeps in a thread for as many seconds as the request says, and says how long that
was: the floor under an RPC whose caller, and whose event loop, have to be woken after a pause.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import time
from typing import Any

import grpc
import grpc.aio

CALL, WAIT = "/twinbert.bench.Noop/Call", "/twinbert.bench.Noop/Wait"
SECONDS = struct.Struct("<d")

_Context = grpc.aio.ServicerContext[Any, Any]


async def serve(size: int) -> None:
    """Serves until killed; prints the port that it listens on."""
    answer = bytes(size)

    def sleep(seconds: float) -> float:
        begun = time.perf_counter()
        time.sleep(seconds)
        return time.perf_counter() - begun

    async def call(_request: bytes, _context: _Context) -> bytes:
        return answer

    async def wait(request: bytes, _context: _Context) -> bytes:
        (seconds,) = SECONDS.unpack_from(request)
        slept = await asyncio.get_running_loop().run_in_executor(None, sleep, seconds)
        return SECONDS.pack(slept) + answer

    server = grpc.aio.server()
    answered = grpc.unary_unary_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Call": answered(call), "Wait": answered(wait)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("twinbert.bench.Noop", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=int)
    asyncio.run(serve(parser.parse_args().size))
