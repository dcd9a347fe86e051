"""A run's folder: what was asked for, how it went, and what a killed run goes on from.

    configuration.json      what was asked for; a folder of another configuration is refused
    metrics.jsonl           a line for every few steps and for every epoch, in order of `step`
    curves.png              the same as curves
    checkpoint/             the latest one: state.safetensors and state.json; replaced in one step
    .lock                   held by the process that works in the folder, and says which it is

The result of a run stands beside it, under a name of the caller's.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from store.files import replace_file, sync_directory, sync_file
from twinbert.errors import UsageError
from twinbert.training.report import Report, Silent

CONFIGURATION = "configuration.json"
_CHECKPOINT = "checkpoint"
_LOCK = ".lock"
_MISSING = object()  # a field that one of two configurations has not


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and how far training was."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


class Run:
    """The folder of one training run.

    Args:
        path: the folder; it is made where there is none.
        configuration: JSON of what shapes the result: equal configurations give equal results. A field that the
            folder's lacks was not recorded when it was made, and is not compared.
        writes: whether this process is the one of several that writes.

    Raises:
        UsageError: the folder holds something else, or a run of another configuration.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self._metrics = path / "metrics.jsonl"
        # As it will be read back: tuples become lists.
        self.configuration: dict[str, Any] = json.loads(json.dumps(configuration))
        self._claim()

    def _claim(self) -> None:
        file = self.path / CONFIGURATION
        if self._writes and not file.exists():
            # What another process that claims it at this moment may have put there says nothing of whose it is.
            claiming = (_LOCK, f".{CONFIGURATION}.")
            if self.path.exists() and (
                not self.path.is_dir() or any(not one.name.startswith(claiming) for one in self.path.iterdir())
            ):
                raise UsageError(f"{self.path}: is no folder of a run, and not empty; give another one with --output")
            with locked(self.path, Silent()):
                if not file.exists():
                    replace_text(file, json.dumps(self.configuration, indent=2, sort_keys=True) + "\n")
        if file.exists():
            self._compare(file)

    def _compare(self, file: Path) -> None:
        try:
            found = json.loads(file.read_bytes())
            recorded = {name: value for name, value in self.configuration.items() if name in found}
        except (ValueError, TypeError) as error:
            raise UsageError(f"{file}: is damaged ({error}); remove the folder {self.path}") from error
        if found != recorded:
            raise UsageError(
                f"{self.path}: holds a run of another configuration ({', '.join(_differences(found, recorded))}); "
                "give another folder with --output, or remove this one"
            )

    def log(self, **metrics: Any) -> None:  # noqa: ANN401 - what JSON can say
        """Adds a line to metrics.jsonl; values that are no number are left out."""
        if not self._writes:
            return
        finite = {
            name: value for name, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)
        }
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a kill has cut short ends them."""
        lines: list[dict[str, Any]] = []
        if self._metrics.exists():
            for line in self._metrics.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
        return lines

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint. Killed at any point, the folder has the old one or the new."""
        if not self._writes:
            return
        building, current, old = (self.path / f"{_CHECKPOINT}{suffix}" for suffix in (".building", "", ".old"))
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        (building / "state.safetensors").write_bytes(safetensors.torch.save(checkpoint.tensors))
        (building / "state.json").write_text(json.dumps(checkpoint.progress), encoding="utf-8")
        for file in building.iterdir():
            sync_file(file)
        sync_directory(building)
        shutil.rmtree(old, ignore_errors=True)
        if current.exists():
            current.rename(old)
        building.rename(current)
        sync_directory(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The checkpoint to go on from; metrics written after it are forgotten, since they come again.

        Raises:
            UsageError: it is damaged.
        """
        path = next((p for p in (self.path / _CHECKPOINT, self.path / f"{_CHECKPOINT}.old") if p.exists()), None)
        progress: dict[str, Any] = {"step": 0}
        tensors: dict[str, Tensor] = {}
        if path is not None:
            try:
                progress = json.loads((path / "state.json").read_bytes())
                tensors = safetensors.torch.load_file(path / "state.safetensors")
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                raise UsageError(f"{path}: is damaged ({error}); remove it to begin anew") from error
        if self._writes:
            kept = [line for line in self.metrics() if line.get("step", 0) <= progress["step"]]
            replace_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept if path is not None))
        return None if path is None else Checkpoint(tensors, progress)

    def drop_checkpoint(self) -> None:
        """Frees its space once the result stands elsewhere."""
        if self._writes:
            for suffix in ("", ".old", ".building"):
                shutil.rmtree(self.path / f"{_CHECKPOINT}{suffix}", ignore_errors=True)

    def draw(self) -> None:
        """Draws metrics.jsonl as curves.png, a panel for each metric."""
        lines = [line for line in self.metrics() if "step" in line]
        names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "epoch", "seconds")))
        if not self._writes or not names:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, linewidth=1)
            axes.set_title(name)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
        for axes in figure.axes[len(names) :]:
            axes.remove()
        building = self.path / "curves.building.png"
        figure.savefig(building, dpi=110)
        building.replace(self.path / "curves.png")


@contextmanager
def locked(folder: Path, report: Report, *, wait: bool = True, writes: bool = True) -> Iterator[None]:
    """Holds a folder against other processes; the kernel lets go if this one dies.

    Args:
        folder: made where there is none.
        report: is told "waiting" where somebody else holds it, and "waited" when it is this one's turn.
        wait: for whoever holds it, without end.
        writes: whether this process is the one of several that writes: the others hold nothing.

    Raises:
        UsageError: somebody else holds it, and there is no waiting; the message says who and since when.
    """
    if not writes:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            held = f"{folder}: {file.read().strip() or 'another process'} works in it"
            if not wait:
                raise UsageError(f"{held}; wait for it to end") from None
            report.event("waiting", f"{held}; waiting for it to end", folder=str(folder))
            fcntl.flock(file, fcntl.LOCK_EX)
            report.event("waited", f"{folder}: is free", folder=str(folder))
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def recorded(folder: Path) -> dict[str, Any]:
    """What was asked for in a run's folder; nothing where that is missing, or damaged, as whoever claims it says."""
    try:
        found = json.loads((folder / CONFIGURATION).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or what was there before."""
    replace_file(path, text.encode())


def _differences(found: object, wanted: object, where: str = "") -> list[str]:
    """Where two configurations differ, as dotted names with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for name in sorted(found.keys() | wanted.keys())
            for difference in _differences(
                found.get(name, _MISSING), wanted.get(name, _MISSING), f"{where}.{name}".lstrip(".")
            )
        ]
    there, here = ("missing" if value is _MISSING else repr(value) for value in (found, wanted))
    return [] if found == wanted else [f"{where} is {there} there and {here} here"]
