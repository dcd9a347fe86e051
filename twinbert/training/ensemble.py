"""A recipe's teacher whole: cross-encoders that speak with one voice, and what words alone say beside them.

Shapes: N pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from twinbert.training.devices import Precision
from twinbert.training.lexical import Lexical
from twinbert.training.teacher import Floats, Teacher, TextPair


class Ensemble:
    """Teachers that speak with one voice, the mean of their logits.

    It errs less than any of them, and teaches better (Hofstätter et al., arXiv 2010.02666).

    Args:
        members: cross-encoders, at least one.
        lexical: the network whose logit is added to theirs, weighted; None: they speak alone.

    Attributes:
        digest: what names the members in caches.
    """

    def __init__(self, members: Sequence[Teacher], lexical: Lexical | None = None) -> None:
        self._members, self.lexical = members, lexical
        digests = " ".join(member.digest for member in members)
        self.digest = members[0].digest if len(members) == 1 else hashlib.sha256(digests.encode()).hexdigest()

    def read(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """What the cross-encoders say, as `Teacher.score`."""
        logits_N: Floats = np.mean([member.score(pairs, precision=precision) for member in self._members], axis=0)
        return logits_N

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """The teacher's logits, float32 [N]; their sigmoid is the expected grade."""
        read_N = self.read(pairs, precision=precision)
        return read_N if self.lexical is None else self.lexical.add(read_N, self.lexical.score(pairs))
