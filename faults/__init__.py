"""Faults brought about on purpose, thousands of times, and whether what is promised of each one holds.

`python -m faults` runs them; `docs/reliability.md` says what has been done. Not installed.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Of the repository."""
