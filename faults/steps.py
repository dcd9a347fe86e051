"""A process that kills itself just before one of its steps.

A step is a call that makes something durable or visible: a sync, a rename, a file made, cut or removed. No program has
hooks for it: the calls of `os` are counted where Python code makes them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

STEPS = ("fsync", "fdatasync", "rename", "replace", "mkdir", "posix_fallocate", "truncate", "unlink", "rmdir")


def kill_at(step: int | None, tell: Callable[[str], object]) -> Callable[[], int]:
    """Makes this process kill itself just before its step of this number, whose name it tells first.

    Args:
        step: from 1; None: none, they are only counted.
        tell: takes the step's name.

    Returns:
        How many steps were taken so far.
    """
    taken = 0

    def before(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
            nonlocal taken
            taken += 1
            if taken == step:
                tell(name)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return stepping

    for name in STEPS:
        setattr(os, name, before(name, getattr(os, name)))
    return lambda: taken
