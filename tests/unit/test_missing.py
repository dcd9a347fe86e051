"""`twinbert refresh --missing`: what heals, and what stays deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from encoder_server.command import refresh
from tests.servers import write_documents


@pytest.mark.parametrize("id_of", [str, int])
def test_what_was_deleted_since_it_was_missed_stays_deleted(
    tiny_bundle: Path, tmp_path: Path, id_of: Callable[[int], str | int]
) -> None:
    """A miss heals; once a delta has deleted the document, a source that lags does not bring it back, although the
    recording has not heard of the deletion.
    """

    def refreshed(documents: Path, **settings: Any) -> tuple[int, dict[str, Any]]:
        report = mock.Mock(interval_s=60.0)
        result = refresh(bundle=tiny_bundle, store=tmp_path / "store", documents=documents, report=report, **settings)
        return result.documents, {call.args[0]: call.kwargs for call in report.event.call_args_list}.get("missing", {})

    def deleted(number: int) -> Path:
        path = tmp_path / "deleted.jsonl"
        path.write_text(json.dumps({"id": id_of(number), "deleted": True}) + "\n")
        return path

    texts: dict[Any, str] = {id_of(number): f"red lamp {number}" for number in range(12)}
    misses, lagging = tmp_path / "misses.jsonl", write_documents(tmp_path / "lagging.jsonl", texts)
    misses.write_text("".join(json.dumps({"id": id_of(number), "reason": "never_seen"}) + "\n" for number in (10, 11)))
    refreshed(write_documents(tmp_path / "first.jsonl", dict(list(texts.items())[:10])))
    assert refreshed(lagging, missing=misses) == (12, {"wanted": 2, "found": 2})
    assert refreshed(deleted(11), delta=True)[0] == 11
    assert refreshed(lagging, missing=misses) == (11, {"wanted": 1, "found": 1})
    assert refreshed(deleted(10), delta=True)[0] == 10
    assert refreshed(lagging, missing=misses) == (10, {"wanted": 0, "found": 0})
