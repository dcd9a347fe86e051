"""What the swap gate found, held against what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinbert.errors import DriftError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the next generation may change. The reasons for the defaults are in docs/decisions/0015.

    Attributes:
        lost: share of documents, and of candidates that were asked for, that may be gone.
        tau: least mean of Kendall's τ of the requests' rankings.
        overlap: least mean share of the 10 best that stay among the 10 best.
        shift: largest Kolmogorov-Smirnov distance between the scores before and after.
    """

    lost: float
    tau: float
    overlap: float
    shift: float


SAME_MODEL = Limits(lost=0.1, tau=0.7, overlap=0.7, shift=0.1)
# Two good models agree far less than two days of one; a broken one agrees with nothing.
OTHER_MODEL = Limits(lost=0.1, tau=0.3, overlap=0.3, shift=0.3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What changes from the generation in service to the next: shares and means over requests, see `Limits`.

    None: no request has candidates in both generations, so there is nothing to compare.
    """

    documents_lost: float
    candidates_lost: float
    kendall_tau: float | None
    top_10_overlap: float | None
    score_shift: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Measures and limits, and whether the generation is published whatever they say.

    Attributes:
        against: name of the generation that was compared with.
        recorded: requests that were replayed and name documents of that generation; the others were texts of documents.
        asked: requests in all.
        measured: what was found.
        limits: what is allowed.
        forced: whether it is published whatever was found: the operator's word.
    """

    against: str
    recorded: int
    asked: int
    measured: Measures
    limits: Limits
    forced: bool

    @property
    def exceeded(self) -> list[str]:
        """Measures beyond their limits, in words; none: the generation may be published."""
        return [
            f"{name.replace('_', ' ')} is {_shown(value)}, {bound}"
            for name, value, bound, passed in self._rows()
            if not passed
        ]

    def require(self) -> None:
        """Raises DriftError where a limit is exceeded and nobody forces it."""
        if self.exceeded and not self.forced:
            raise DriftError(
                f"nothing was published: compared with {self.against}, {'; '.join(self.exceeded)}. What was encoded is "
                "reused by the next refresh; if the change is meant, publish it with --force"
            )

    def table(self) -> str:
        """For people: what was measured against what is allowed, one line each."""
        source = f"{self.asked:,} requests" + (f", {self.recorded:,} of them recorded" if self.recorded else "")
        outcome = "forced" if self.forced else "refused" if self.exceeded else "passed"
        lines = [f"swap gate: {outcome}, compared with {self.against} by {source}"]
        for name, value, bound, passed in self._rows():
            lines.append(f"  {name.replace('_', ' '):16} {_shown(value):>6}   {bound}{'' if passed else '   exceeded'}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and for logs, to three digits."""
        measured = dataclasses.asdict(self.measured)
        return {
            "against": self.against,
            "requests": self.asked,
            "recorded_requests": self.recorded,
            "measured": {name: None if value is None else round(value, 3) for name, value in measured.items()},
            "limits": dataclasses.asdict(self.limits),
            "exceeded": [name for name, _, _, passed in self._rows() if not passed],
            "forced": self.forced,
        }

    def _rows(self) -> list[tuple[str, float | None, str, bool]]:
        most: Mapping[str, float] = {
            "documents_lost": self.limits.lost,
            "candidates_lost": self.limits.lost,
            "score_shift": self.limits.shift,
        }
        least: Mapping[str, float] = {"kendall_tau": self.limits.tau, "top_10_overlap": self.limits.overlap}
        rows = []
        for name, value in dataclasses.asdict(self.measured).items():
            if name in most:
                passed, bound = value is None or value <= most[name], f"at most {most[name]:g}"
            else:
                passed, bound = value is None or value >= least[name], f"at least {least[name]:g}"
            rows.append((name, value, bound, passed))
        return rows


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
