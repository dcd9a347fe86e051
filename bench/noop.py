"""A gRPC server that does nothing: the floor under every RPC. It answers any request with so many bytes."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
import grpc.aio

METHOD = "/twinbert.bench.Noop/Call"


async def serve(size: int) -> None:
    """Serves until killed; prints the port that it listens on."""
    answer = bytes(size)

    async def call(_request: bytes, _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return answer

    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("twinbert.bench.Noop", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=int)
    asyncio.run(serve(parser.parse_args().size))
