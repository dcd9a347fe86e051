"""What takes long to make, made once for all processes that the suite runs in."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def made_once(folder: Path, name: str, makes: Callable[[Path], object]) -> Path:
    """The path of that name, alone in a folder of its own; tests leave what is there as it is.

    Args:
        folder: of all processes.
        name: what it is called.
        makes: makes it at its path, where nobody has yet.
    """
    path = folder / name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.done").open("a+") as done:
        fcntl.flock(done, fcntl.LOCK_EX)
        done.seek(0)
        if not done.read():
            makes(path)
            done.write("done")
            done.flush()
    return path
