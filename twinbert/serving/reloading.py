"""Files that change while a server runs: certificates and tokens are read again when they do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from twinbert.errors import UsageError
from twinbert.serving.log import event
from twinbert.serving.metrics import ReloadMetrics

_T = TypeVar("_T")

# Certificates and tokens take kilobytes; whatever is larger is something else.
_MOST_BYTES = 1 << 20


class Reloaded(Generic[_T]):
    """What some files say. Files that say nothing usable change a metric and the log, never the value.

    Args:
        what: for the metric and the log, e.g. "tokens".
        paths: the files, all of which make the value.
        read: makes the value of their contents; raises UsageError where they are no good.
        metrics: where to show it.

    Attributes:
        value: of the newest contents that were good.

    Raises:
        UsageError: they are no good to begin with.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[Sequence[bytes]], _T],
        metrics: ReloadMetrics,
    ) -> None:
        self._what, self._paths, self._read, self._metrics = what, paths, read, metrics
        contents = _contents(paths)
        self.value = read(contents)
        self._seen: list[bytes] | str = contents

    def look(self) -> None:
        """Reads the files, and takes what they say now; each change is judged and logged once."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        problem = UsageError(seen) if isinstance(seen, str) else self._take(seen)
        self._metrics.failed[self._what].set(problem is not None)
        if problem is None:
            self._metrics.done[self._what].inc()
            event("reloaded", what=self._what)
        else:
            bug = None if isinstance(problem, UsageError) else problem
            why, kept = str(problem), "what was read before"
            event("reload_failed", level=logging.ERROR, error=bug, what=self._what, why=why, kept=kept)

    def _look(self) -> list[bytes] | str:
        """The contents, or why there are none."""
        try:
            return _contents(self._paths)
        except UsageError as error:
            return str(error)

    def _take(self, contents: list[bytes]) -> Exception | None:
        """Makes the value of these contents, or gives what is wrong with them."""
        try:
            self.value = self._read(contents)
        except Exception as error:  # noqa: BLE001  the edge of a thread: what nobody foresaw is told like the rest
            return error
        return None


def _contents(paths: Sequence[Path]) -> list[bytes]:
    return [_content(path) for path in paths]


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{path} has over {_MOST_BYTES:,} bytes; this is neither a certificate nor a list of tokens")
    return content
