"""What the parts of a run have found, kept until its report is written, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from bench.findings import Findings


class Kept:
    """Findings of one commit on one machine, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, commit: str, *, fresh: bool = False) -> bool:
        """Forgets what was found before, unless it is beyond doubt this code's: two dirty trees look equal.

        Args:
            commit: as `bench.report.commit` says it.
            fresh: forget all.

        Returns:
            Whether there was anything to forget.
        """
        path = self._folder / "state"
        state = json.dumps({"commit": commit, "cores": len(os.sched_getaffinity(0))})
        clean = commit != "unknown" and not commit.endswith("-dirty")
        if clean and not fresh and path.exists() and path.read_text() == state:
            return False
        forgotten = bool(self.found())
        self.forget()
        self._folder.mkdir(parents=True)
        path.write_text(state)
        return forgotten

    def keep(self, part: str, findings: Findings) -> None:
        """Keeps what a part has found."""
        findings.save(self._folder / f"{part}.json")

    def found(self) -> dict[str, Findings]:
        """What is kept, by part."""
        return {path.stem: Findings.load(path) for path in sorted(self._folder.glob("*.json"))}

    def forget(self) -> None:
        """Removes all."""
        shutil.rmtree(self._folder, ignore_errors=True)
