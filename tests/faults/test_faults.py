"""A few attempts of each fault, with fixed seeds: `make faults` runs thousands, and judges times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from faults.catalogue import FAULTS
from faults.clock import CLOCK
from faults.damaged import CUT, DAMAGED
from faults.fault import Fault, NotRunError
from faults.full_disk import FULL_DISK
from faults.fuzz import FUZZ
from faults.killed import KILLED
from faults.swaps import SWAPS
from tests.faults.small import ATTACKS, DEADLINES, OVERLOAD, SOAK, WORKERS

# Each action both ways; both files at their ends and within; every damage; each action on a disk that is full; every
# attack; a delta, a compaction and a full refresh.
SEEDS: list[tuple[Fault, tuple[int, ...]]] = [
    (KILLED, (0, 1, 2, 3, 4, 5, 9, 15)),
    (CUT, (0, 15, 17, 400)),
    (DAMAGED, (0, 1, 2, 3, 4)),
    (FULL_DISK, (0, 20, 128, 148, 276, 404, 532, 660)),
    (SWAPS, (0, 1)),
    (ATTACKS, (0, 1, 2, 3, 4)),
    (FUZZ, (0,)),
    (CLOCK, (0, 1, 2)),
    (DEADLINES, (0,)),
    (OVERLOAD, (0,)),
    (WORKERS, (0,)),
    (SOAK, (18, 19, 20)),
]


def test_every_fault_is_here() -> None:
    """What `make faults` brings about, the suite does a little of."""
    assert sorted(fault.name for fault, _ in SEEDS) == sorted(fault.name for fault in FAULTS)


@pytest.mark.parametrize(("fault", "seeds"), SEEDS, ids=[fault.name for fault, _ in SEEDS])
def test_the_promise_holds(fault: Fault, seeds: tuple[int, ...], tiny_bundle: Path, tmp_path: Path) -> None:
    """Whatever the seed, the fault does what is promised of it; slow, since real processes are broken."""
    outcomes = Counter[str]()
    try:
        with fault.prepare(tmp_path, tiny_bundle) as attempt:
            for seed in seeds:
                outcomes.update(attempt(seed).counts)
    except NotRunError as missing:
        pytest.skip(str(missing))
    assert outcomes.total() >= len(seeds)
