"""A recipe's teacher whole: cross-encoders that speak with one voice, and what words alone say beside them.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from twinbert.training.devices import Precision
from twinbert.training.lexical import Lexical
from twinbert.training.teacher import Floats, Teacher, TextPair


class Ensemble:
    """Teachers that speak with one voice, the mean of their logits, to which what words alone say may be added.

    The mean errs less than any of them, and teaches better (Hofstätter et al., arXiv 2010.02666).

    Args:
        members: cross-encoders, at least one.
        lexical: the network whose logit is added to theirs, weighted; None: they speak alone.

    Attributes:
        members_digest: what names the cross-encoders in caches.
    """

    def __init__(self, members: Sequence[Teacher], lexical: Lexical | None = None) -> None:
        self._members, self.lexical = members, lexical
        digests = [member.digest for member in members]
        self.members_digest = digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """The teacher's logits, float32 [N]; their sigmoid is the expected grade."""
        members_N = self.score_members(pairs, precision=precision)
        return members_N if self.lexical is None else self.lexical.add(members_N, self.lexical.score(pairs))

    def score_members(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """What the cross-encoders say alone, as `Teacher.score`."""
        logits_N: Floats = np.mean([member.score(pairs, precision=precision) for member in self._members], axis=0)
        return logits_N
