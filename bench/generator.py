"""A load generator, in a process of its own so that no other Python waits for its interpreter.

    python -m bench.generator CLIENT ARGUMENTS WORKLOAD

CLIENT is a module with `async def connect(**ARGUMENTS) -> Call`, ARGUMENTS a JSON object. It may also have `blocking`,
which does the same without the event loop: one caller alone is answered sooner so. Commands come on standard input, one
JSON object a line, and each is answered by one:

    {"do": "closed", "clients": 1, "calls": 40, "seconds": 10}     each client calls again when it is answered
    {"do": "open", "rate": 90, "seconds": 10, "seed": 1}           Poisson arrivals, however slow the answers are
    {"do": "scores", "requests": 8}                                the answers to the first requests

Only the standard library: this also runs in the environments of peers.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.load import Call, closed, open_loop, poisson
from bench.workloads import Task, Workload


async def serve(client: str, arguments: dict[str, Any], workload: Path) -> None:
    """Answers commands until standard input ends."""
    module = importlib.import_module(client)
    call: Call = await module.connect(**arguments)
    alone: Call = module.blocking(**arguments) if hasattr(module, "blocking") else call
    asked = Workload.load(workload)
    requests = asked.requests()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            if command["do"] == "scores":
                first = itertools.islice(asked.requests(), command["requests"])
                answer: dict[str, Any] = {"scores": [await call(request) for request in first]}
            else:
                answer = await _load(command, alone if command.get("clients") == 1 else call, requests)
        except Exception as error:  # noqa: BLE001  the edge of the process: the parent decides what becomes of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


async def _load(command: dict[str, Any], call: Call, requests: Iterator[list[Task]]) -> dict[str, Any]:
    if command.pop("do") == "closed":
        done = await closed(call, requests, **command)
    else:
        done = await open_loop(call, requests, poisson(**command))
    return {"due": done.due, "latency": done.latency, "late": done.late, "outcome": done.outcome}


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])))
