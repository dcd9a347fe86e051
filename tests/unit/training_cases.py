"""Graded pairs in files, for tests of runs over them."""

from __future__ import annotations

from pathlib import Path

from twinbert.training import recipe

FILES = recipe.load("tiny", changes={"source": "files"})


def graded(path: Path, count: int = 60, **other: str) -> Path:
    """A file of pairs; `other` texts take the place of the query or document of the one numbered 3."""
    texts = [{"query": f"query {n}", "document": f"text {n % 9}"} | (other if n == 3 else {}) for n in range(count)]
    rows = ["\t".join((text["query"], text["document"], str(n % 2))) for n, text in enumerate(texts)]
    path.write_text("\n".join(["query\tdocument\tgrade", *rows]))
    return path
