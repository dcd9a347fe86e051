"""The swap gate: what the next generation would change for those who ask, measured before it is published.

Recent requests, or where none were recorded texts of documents as queries, are scored on the generation in service, by
the bundle that serves it, and on the one to be, by its own. What differs by more than a limit refuses the publication.
It stands here and not in the scorers, so that replicas never disagree about what is served.

Shapes: N candidates of a request, B those that both generations have, D dimension.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder_server.rankings import Scores, kendall_tau, ks_distance, top_overlap
from encoder_server.settings import GateSettings
from encoder_server.verdict import OTHER_MODEL, SAME_MODEL, Measures, Verdict
from store.comparison import FEWEST_DOCUMENTS, lost_share, sampled_ids
from store.manifest import Manifest
from store.reader import Generation, Located
from twinbert.bundle import Bundle
from twinbert.errors import BundleError, UsageError
from twinbert.recorded import Request, read_requests
from twinbert.runtime import Floats, Runtime

_REQUESTS = 500  # the latest of a recording
_ENOUGH = 64  # rankings to compare; where recorded requests give fewer, texts of documents make up for them
_FEWEST = 20  # rankings that tell a broken model, whose τ is 0 ± 0.2 for 20 candidates, from one that agrees
_AT_ONCE = 32  # requests whose candidates are in memory
_CANDIDATES = 1000  # of one request: what τ takes grows with their square
_SAMPLED_CANDIDATES = 100  # of a request that names none


class Gate:
    """Judges the generation that is to replace the current one.

    Args:
        settings: requests to replay, limits, and where the bundle in service is found.
        runtime: a bundle of the fingerprint of the generation to be, with its query tower.
    """

    def __init__(self, settings: GateSettings, runtime: Runtime) -> None:
        self._settings, self._runtime = settings, runtime
        self._serving: Runtime | None = None
        self._recorded: list[Request] = []
        self._prepared = ""

    def prepare(self, current: Manifest | None, model: str) -> None:
        """Finds what judging against this generation takes, so that it is not missed after hours of encoding.

        Args:
            current: the generation in service.
            model: the one that is meant to serve the next.

        Raises:
            UsageError: there is no such recording, or the bundle in service is not found.
        """
        if current is None or not _judged(current):
            return
        if self._settings.replay is not None:
            self._recorded = read_requests(self._settings.replay, current.id_type, _REQUESTS)
        # Where the model stays any bundle of its fingerprint can tell what changes in the documents.
        self._serving = self._runtime if current.model == model else self._runtime_of(current)
        self._prepared = current.name

    def judge(
        self, before: Generation, after: Generation, model: str, texts: Sequence[str], workers: Executor
    ) -> Verdict | None:
        """Compares a generation with the current one.

        Args:
            before: the current one.
            after: the one that is to replace it.
            model: the one that is meant to serve it.
            texts: of documents, to ask for where too few recorded requests rank documents of both.
            workers: encode.

        Returns:
            What was found; None where the current one has too few documents to tell.

        Raises:
            UsageError: as `prepare`, or there are too few rankings to compare two models by.
        """
        if not _judged(before.manifest):
            return None
        if self._prepared != before.name:
            self.prepare(before.manifest, model)
        serving, recorded = self._serving, self._recorded
        same = serving is self._runtime  # and so are the scores of whatever did not change
        comparison = _Comparison(before, serving, after, self._runtime)
        found = comparison.of(recorded, texts, workers)
        verdict = Verdict(
            against=before.name,
            recorded=comparison.recorded,
            asked=comparison.asked,
            measured=found,
            limits=dataclasses.replace(SAME_MODEL if same else OTHER_MODEL, **self._settings.limits),
            forced=self._settings.force,
        )
        if not (same or comparison.ranked >= _FEWEST or verdict.exceeded or verdict.forced):
            raise UsageError(
                f"the swap gate has {comparison.ranked} rankings to compare and needs {_FEWEST}: "
                f"{comparison.recorded} of {len(recorded)} recorded requests name documents of this store; name a file "
                "that has more with --replay, or publish without comparing: --force"
            )
        return verdict

    def noted(self, verdict: Verdict | None) -> dict[str, Any]:
        """What `quality` in the manifest says of it: that it was forced also where nothing was refused, or compared.

        A replica may serve an older generation than the one that was compared with, and lack what that one has.
        """
        if verdict is not None:
            return {"gate": verdict.as_dict()}
        return {"gate": {"forced": True}} if self._settings.force else {}

    def _runtime_of(self, current: Manifest) -> Runtime | None:
        """The bundle that serves the current generation; None where it is not found and nobody insists."""
        folder = self._settings.bundles or self._runtime.bundle.path.parent
        try:
            return Runtime(Bundle.of_model(folder, current.model))
        except BundleError as error:
            if self._settings.force:
                return None
            raise UsageError(
                f"the swap gate compares with {current.name}, which model {current.model} serves, and cannot: {error}; "
                "name the folder that has that bundle with --bundles, or publish without comparing: --force"
            ) from error


class _Comparison:
    """Two generations, each with the bundle that serves it; None: the one in service is not at hand.

    Attributes:
        asked: requests with a candidate in the generation in service, whether named or chosen here.
        recorded: those of them that were recorded.
    """

    def __init__(self, before: Generation, serving: Runtime | None, after: Generation, runtime: Runtime) -> None:
        self._before, self._serving = before, serving
        self._after, self._runtime = after, runtime
        self._random = np.random.default_rng(0)
        self.asked = self.recorded = 0
        self._had = self._lost = self._pairs = self._unchanged = 0
        self._taus: list[float] = []
        self._overlaps: list[float] = []
        self._scores: list[tuple[Scores, Scores]] = []

    @property
    def ranked(self) -> int:
        """Requests whose rankings were compared: of at least two candidates that both generations have."""
        return len(self._taus) + self._unchanged

    def of(self, recorded: Sequence[Request], texts: Sequence[str], workers: Executor) -> Measures:
        """Measures what changes for recorded requests, and as far as they rank too little for texts as queries."""
        self._ask(recorded, workers)
        self.recorded = self.asked
        self._ask([Request(text, [], "") for text in texts[: max(0, _ENOUGH - self.ranked)]], workers)
        shift = 0.0 if self._unchanged else None
        if self._scores:
            before_P, after_P = (np.concatenate(side) for side in zip(*self._scores, strict=True))
            # What did not change has the same part in both distributions, so it only weighs.
            shift = ks_distance(before_P, after_P) * len(before_P) / self._pairs
        return Measures(
            documents_lost=lost_share(self._before, self._after),
            candidates_lost=self._lost / self._had if self._had else 0.0,
            kendall_tau=_mean(self._taus, self._unchanged),
            top_10_overlap=_mean(self._overlaps, self._unchanged),
            score_shift=shift,
        )

    def _ask(self, requests: Sequence[Request], workers: Executor) -> None:
        for start in range(0, len(requests), _AT_ONCE):
            changed = [one for request in requests[start : start + _AT_ONCE] if (one := self._found(request))]
            if self._serving is not None:
                self._compare(self._serving, changed, workers)

    def _found(self, request: Request) -> _Asked | None:
        """The candidates that both generations have; None where there are none, or nothing about them changed."""
        ids: Any = request.ids[:_CANDIDATES] or sampled_ids(self._before, _SAMPLED_CANDIDATES, self._random)
        if self._before.manifest.id_type == "integer":
            ids = np.array(ids, dtype=np.uint64)
        before, after = self._before.locate(ids), self._after.locate(ids)
        both_N = before.found & after.found
        if request.ids or self.asked < _ENOUGH:  # what is chosen here must not outweigh what many asked for
            self._had += int(before.found.sum())
            self._lost += int((before.found & ~after.found).sum())
        self.asked += bool(before.found.any())
        pairs = int(both_N.sum())
        self._pairs += pairs
        if not pairs:
            return None
        before_BD, after_BD = self._before.read(_only(before, both_N)), self._after.read(_only(after, both_N))
        if self._serving is self._runtime and np.array_equal(before_BD, after_BD):
            self._unchanged += pairs > 1  # and so are its scores: most requests of a small delta cost no encoding
            return None
        return _Asked(request, before_BD, after_BD)

    def _compare(self, serving: Runtime, changed: Sequence[_Asked], workers: Executor) -> None:
        queries = [one.request.query for one in changed]
        before_1D = list(workers.map(lambda query: serving.encode([query]), queries))
        after_1D = before_1D
        if serving is not self._runtime:
            after_1D = list(workers.map(lambda query: self._runtime.encode([query]), queries))
        for one, query_before, query_after in zip(changed, before_1D, after_1D, strict=True):
            before_B = _scores(serving, query_before, one.before_BD, one.request.crossing)
            after_B = _scores(self._runtime, query_after, one.after_BD, one.request.crossing)
            # What is no number has no order either, and lies below every score that there was.
            scores = before_B, np.nan_to_num(after_B, nan=-1.0)
            if not math.isnan(tau := kendall_tau(*scores)):
                self._taus.append(tau)
            if len(before_B) > 1:
                self._overlaps.append(top_overlap(*scores))
            self._scores.append(scores)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and the embeddings of its candidates before and after."""

    request: Request
    before_BD: Floats
    after_BD: Floats


def _judged(manifest: Manifest) -> bool:
    return manifest.documents >= FEWEST_DOCUMENTS


def _only(located: Located, wanted_N: npt.NDArray[np.bool_]) -> Located:
    return Located(wanted_N, located.rows[wanted_N[located.found]])


def _scores(runtime: Runtime, query_1D: Floats, documents_BD: Floats, crossing: str) -> Floats:
    name = crossing if crossing in runtime.bundle.crossings else None
    return runtime.cross(query_1D, documents_BD, np.zeros(len(documents_BD), dtype=np.int64), name)


def _mean(measured: Sequence[float], unchanged: int) -> float | None:
    """The mean over requests, those that did not change counting as 1; None where there are none."""
    count = len(measured) + unchanged
    return (sum(measured) + unchanged) / count if count else None
