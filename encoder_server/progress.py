"""How far a refresh is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Progress:
    """A refresh so far, in documents; deletions are received like documents.

    Attributes:
        received: all that came.
        encoded: by the document tower.
        reused: whose text has a stored row of the same fingerprint and encoding.
        deleted: deletions, in a delta.
        rejected: left out.
        duplicates: whose id came again later; all are known once the generation is sealed.
        skipped: of the duplicates those that came again soon, so that they were neither encoded nor reused.
        truncated: of those encoded, longer than the tower reads.
        absent: of the deletions those of ids that the store does not have; known once the generation is sealed.
    """

    received: int = 0
    encoded: int = 0
    reused: int = 0
    deleted: int = 0
    rejected: int = 0
    duplicates: int = 0
    skipped: int = 0
    truncated: int = 0
    absent: int = 0

    @property
    def finished(self) -> int:
        """Those that are not under way."""
        return self.encoded + self.reused + self.deleted + self.rejected + self.skipped
