"""All faults, in the order in which they are run and shown."""

from faults.attacks import ATTACKS
from faults.clock import CLOCK
from faults.damaged import CUT, DAMAGED
from faults.deadlines import DEADLINES
from faults.full_disk import FULL_DISK
from faults.fuzz import FUZZ
from faults.killed import KILLED
from faults.overload import OVERLOAD
from faults.soak import SOAK
from faults.swaps import SWAPS
from faults.workers import WORKERS

FAULTS = (KILLED, CUT, DAMAGED, FULL_DISK, SWAPS, OVERLOAD, DEADLINES, ATTACKS, FUZZ, WORKERS, CLOCK, SOAK)
