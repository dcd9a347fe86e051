"""All faults, in the order in which they are run and shown."""

from faults.killed import KILLED

FAULTS = (KILLED,)
