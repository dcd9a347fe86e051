"""What `twinbert store adopt` does: a bundle with a new query tower, or crossing, takes over the stored documents."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from encoder_server.gate import Gate
from encoder_server.report import Report
from encoder_server.settings import GateSettings, default_workers
from store.adoption import adopt as publish
from store.manifest import Manifest
from store.store import Store
from twinbert import __version__
from twinbert.bundle import Bundle
from twinbert.errors import MismatchError
from twinbert.runtime import Runtime


def adopt(*, bundle: Path, store: Path, report: Report, gate: GateSettings) -> str:
    """Publishes the current generation again for another bundle of its fingerprint; nothing is encoded again.

    Args:
        bundle: the bundle's directory.
        store: the store's folder.
        report: what is told of the gate's verdict.
        gate: what the bundle has to pass; there are no texts of documents to ask for here, only recorded requests.

    Returns:
        Name of the generation that is current then: the one before, where it is this bundle's already.

    Raises:
        MismatchError: the generation has another fingerprint, so that it has to be encoded again.
        DriftError: the gate refused; nothing was published.
        UsageError: what the gate needs is not there.
        StoreError: the store is missing, empty, damaged, or somebody else changes it.
    """
    opened, target = Bundle.open(bundle), Store(store)
    current = target.manifest(target.current())
    if current.model == opened.model:
        return current.name

    def judge(current: Manifest) -> Mapping[str, Any]:
        if current.fingerprint != opened.fingerprint:
            raise MismatchError(
                f"generation {current.name} has fingerprint {current.fingerprint}, bundle {opened.path} has "
                f"{opened.fingerprint}: its documents must be encoded again, with twinbert refresh"
            )
        judging = Gate(gate, Runtime(opened))
        with (
            contextlib.closing(target.open(current.name)) as generation,
            ThreadPoolExecutor(default_workers(), "encode") as workers,
        ):
            verdict = judging.judge(generation, generation, opened.model, [], workers)
        quality = {name: value for name, value in current.quality.items() if name != "gate"}
        if verdict is not None:
            report.event("gate", verdict.table(), **verdict.as_dict())
            verdict.require()
        return quality | judging.noted(verdict)

    return publish(target, model=opened.model, software=f"twinbert {__version__}", judge=judge).name
