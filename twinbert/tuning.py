"""Which kind of engine serves a bundle fastest on this host: timed by `bundle tune`, kept for `twinbert serve`.

    $XDG_STATE_HOME/twinbert/<model>.json      the choice for a bundle, and what it was made on

A choice that was made on another processor, or with other versions, is not used.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from twinbert import __version__, processor
from twinbert.bundle import ENGINES, Bundle, Engine
from twinbert.errors import BundleError, UsageError
from twinbert.fields import Fields, parse_json
from twinbert.runtime import Runtime

# Words of typical queries of product search: median 4, 95th percentile 6.
TYPICAL = (
    "white outdoor wall lamp",
    "kitchen faucet",
    "led light bulb",
    "stainless steel double bowl kitchen sink",
    "cordless drill battery pack",
    "6 foot ladder",
    "black metal shelf with wheels",
    "thermostat",
    "wooden garden fence panel",
    "ceramic floor tile",
    "small window air conditioner with remote and heat pump",
    "door handle",
    "electric lawn mower 16 inch",
    "grey bathroom wall paint",
    "usb wall socket",
    "solar lights for the garden path",
)

BATCH = 8  # queries in a batch, as under load
_ALIKE = 0.95  # of the best rate: what is not slower than that is taken for as fast


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a bundle's queries are encoded: by which kind of engine, with how many threads a batch."""

    engine: Engine
    threads: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a choice gave on this host: medians of rounds.

    Attributes:
        alone_s: time of one query while nothing else runs, in seconds.
        rate: queries a second of all callers, in batches.
    """

    choice: Choice
    alone_s: float
    rate: float


def default_folder() -> Path:
    """Where this host keeps its choices."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - never raises
    return Path(state) / "twinbert"


def measure(
    bundle: Bundle,
    queries: Sequence[str],
    *,
    threads: Sequence[int],
    callers: int,
    rounds: int = 5,
    seconds: float = 0.2,
) -> list[Timing]:
    """Times every engine of a bundle with every number of threads, in turn so that all meet the same neighbours.

    Args:
        bundle: what to time.
        queries: texts of typical lengths.
        threads: numbers of threads that encode one batch.
        callers: batches encoded at a time, as many as `twinbert serve` has engines.
        rounds: turns.
        seconds: length of each of a turn's two parts.

    Raises:
        UsageError: there are no queries.
    """
    if not queries:
        raise UsageError("there are no queries to time; give a file with one a line")
    batches = list(_batches(queries))
    choices = [Choice(engine=engine, threads=count) for engine in bundle.engines for count in threads]
    runtimes = [Runtime(bundle, engine=choice.engine, threads=choice.threads) for choice in choices]
    alone: list[list[float]] = [[] for _ in choices]
    rates: list[list[float]] = [[] for _ in choices]
    with ThreadPoolExecutor(callers) as pool:
        for _ in range(rounds):
            for runtime, alone_s, rate in zip(runtimes, alone, rates, strict=True):
                runtime.encode(batches[0])  # brings its weights back into the cache
                alone_s.append(_alone(runtime, queries, seconds))
                rate.append(_rate(runtime, batches, pool, callers, seconds))
    return [
        Timing(choice=choice, alone_s=float(np.median(alone_s)), rate=float(np.median(rate)))
        for choice, alone_s, rate in zip(choices, alone, rates, strict=True)
    ]


def best(timings: Sequence[Timing]) -> Choice:
    """Of the choices that encode the most, since rate is what runs out, the one that answers a query alone soonest."""
    most = max(timing.rate for timing in timings)
    return min((timing for timing in timings if timing.rate >= _ALIKE * most), key=lambda one: one.alone_s).choice


def keep(bundle: Bundle, choice: Choice, folder: Path) -> Path:
    """Keeps a choice for this host, in place of an earlier one.

    Raises:
        OSError: it cannot be written.
    """
    path = _path(bundle, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": bundle.model, **asdict(choice), "made_on": _host()}
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    written.replace(path)
    return path


def kept(bundle: Bundle, folder: Path) -> tuple[Choice | None, str]:
    """The choice that is kept for a bundle on this host, if it still holds, and where from or why not.

    Whatever may be wrong with the file, it is outside the bundle and can be made again: it is no error.
    """
    path, remedy = _path(bundle, folder), "run `twinbert bundle tune` on this host"
    try:
        fields = Fields(path, parse_json(path, path.read_bytes(), dict, remedy=remedy), remedy=remedy)
        made_on, host = fields.values("made_on"), _host()
        changed = [
            f"{what} is {now}, was {made_on.get(what)}" for what, now in host.items() if made_on.get(what) != now
        ]
        if changed:
            return None, f"{path}: no longer holds: {'; '.join(changed)}; {remedy}"
        engine = next(one for one in ENGINES if one == fields.choice("engine", *bundle.engines))
        return Choice(engine=engine, threads=fields.count("threads", most=1024)), str(path)
    except OSError as error:
        return None, f"{path}: {error.strerror}; {remedy}"
    except BundleError as error:
        return None, str(error)


def _path(bundle: Bundle, folder: Path) -> Path:
    return folder / f"{bundle.model}.json"


def _host() -> dict[str, Any]:
    """What a timing depends on."""
    vectors = sorted(processor.flags() & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"})
    return {
        "processor": " ".join([processor.name(), *vectors]),
        "cores": len(os.sched_getaffinity(0)),
        "twinbert": __version__,
        "onnxruntime": metadata.version("onnxruntime"),
    }


def _batches(queries: Sequence[str]) -> Iterator[list[str]]:
    cycle = itertools.cycle(queries)
    for _ in range(-(-max(len(queries), BATCH) // BATCH)):
        yield list(itertools.islice(cycle, BATCH))


def _alone(runtime: Runtime, queries: Sequence[str], seconds: float) -> float:
    """Median seconds of one query."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    for query in itertools.cycle(queries):
        start = time.perf_counter()
        runtime.encode([query])
        times.append(time.perf_counter() - start)
        if time.perf_counter() > stop:
            break
    return float(np.median(times))


def _rate(
    runtime: Runtime, batches: Sequence[list[str]], pool: ThreadPoolExecutor, callers: int, seconds: float
) -> float:
    """Queries a second of callers who always have a batch."""
    start = time.perf_counter()

    def call(caller: int) -> int:
        encoded = 0
        for batch in itertools.islice(itertools.cycle(batches), caller, None):
            encoded += len(runtime.encode(batch))
            if time.perf_counter() - start > seconds:
                break
        return encoded

    return sum(pool.map(call, range(callers))) / (time.perf_counter() - start)
