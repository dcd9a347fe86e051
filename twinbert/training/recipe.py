"""A recipe: a TOML file that says, from data to bundles, what is trained and how."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twinbert.errors import UsageError
from twinbert.training.data import Columns
from twinbert.training.ensemble import CROSS_ENCODERS, WORDS
from twinbert.training.initial import SEEDS, StudentConfig
from twinbert.training.lexical import LexicalConfig
from twinbert.training.pairs import PairsConfig
from twinbert.training.tables import build, merged
from twinbert.training.teacher import TeacherConfig

FULL = "full"
AGAIN = "@"  # between the name of a student and another seed that it is trained from
_NAME = re.compile(rf"\w[\w.-]*({AGAIN}\d+)?")  # of a student, and so of a folder
Source = Literal["home_depot", "files", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained on what.

    Raises:
        UsageError: the sample is no share, the seed is out of range, there is no teacher, a twin needs one, or a name
            is none for a student.
    """

    source: Source
    """What `--data` is: the Home Depot zip, graded pairs in files, or nothing, since it is made in code."""
    seed: int = 2002
    """Of everything random."""
    columns: Columns = field(default_factory=Columns)
    """Of files."""
    sample: float = 1.0
    """Share of the training queries to learn from."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The cross-encoder."""
    teachers: int = 1
    """How many of it there are, of seeds far apart; the mean of their logits teaches."""
    lexical: LexicalConfig | None = None
    """A network on how words stand in documents, which teaches along; None: there is none."""
    twins: tuple[str, ...] = ()
    """Students that learn from grades alone, and then teach the others along with the cross-encoder."""
    pairs: PairsConfig = field(default_factory=PairsConfig)
    """What it is asked."""
    students: Mapping[str, StudentConfig]
    """By name; those whose losses need no teacher learn from the judged pairs alone."""

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise UsageError(f"recipe: sample is {self.sample}; it must be above 0 and at most 1")
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"recipe: seed is {self.seed}; it must be from 0 to {SEEDS - 1}")
        if self.teachers < 1:
            raise UsageError(f"recipe: teachers is {self.teachers}; it must be at least 1")
        for name in self.students:
            if not _NAME.fullmatch(name):
                raise UsageError(f"recipe: {name!r} is no name for a student; use letters, digits, '-', '_' and '.'")
        for name in self.twins:
            if name in (CROSS_ENCODERS, WORDS):
                raise UsageError(f"recipe: the twin {name!r} has the name of another voice of the teacher; rename it")
            if name in self.students and self.students[name].needs_teacher:
                raise UsageError(
                    f"recipe: the twin {name!r} cannot teach, it needs a teacher; set its losses to grades"
                )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the data is; see `twinbert.training.data`."""

    train: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    queries: Path | None = None
    documents: Path | None = None


def with_seeds(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe with those students too that are named NAME@SEED: its student NAME, trained from another seed.

    Teacher, pairs and first stage stay those of the recipe, so such students say how much is chance in the student.

    Raises:
        UsageError: what follows the @ is no seed, or that of the student itself.
    """
    students = dict(recipe.students)
    for name in names:
        base, again, seed = name.partition(AGAIN)
        if not again or base not in students:
            continue
        if not seed.isdecimal() or seed != str(int(seed)):
            raise UsageError(f"{name}: {seed!r} is no seed; give a number from 0, as in {base}{AGAIN}3")
        if int(seed) == (recipe.seed if students[base].seed is None else students[base].seed):
            raise UsageError(f"{name}: is {base} itself, whose seed is {seed}; give another")
        students[name] = dataclasses.replace(students[base], seed=int(seed))
    return dataclasses.replace(recipe, students=students)


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = importlib.resources.files("twinbert.training") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load(name: str, *, budget: str | None = FULL, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        name: of one that comes with the package, or the path of a TOML file.
        budget: one of its tables [budgets.NAME], whose values take the place of others, and where `false` stands in the
            place of a table there is none; None or `full`: the recipe as it is.
        changes: values that take the place of others, nested as the recipe's tables are.

    Raises:
        UsageError: there is no such recipe or budget, or it says what makes no sense.
    """
    own = importlib.resources.files("twinbert.training") / "recipes" / f"{name}.toml"
    path = Path(name) if name.endswith(".toml") else own
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{name}: is no recipe; there are {', '.join(recipes())}, or give a .toml file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: cannot be read as TOML ({error})") from error
    budgets = table.pop("budgets", {})
    budget = budget or FULL
    if budget not in (FULL, *budgets):
        raise UsageError(f"{name}: has no budget {budget!r}; there are {', '.join([FULL, *budgets])}")
    for override in (budgets.get(budget, {}), changes or {}):
        table = merged(table, override)
    recipe = build(Recipe, table, name)
    if again := [name for name in recipe.students if AGAIN in name]:
        raise UsageError(f"{name}: the student {again[0]!r} has a name for another seed; rename it")
    if not recipe.students:
        raise UsageError(f"{name}: the recipe has no student; give at least one table [students.NAME]")
    if missing := [twin for twin in recipe.twins if twin not in recipe.students]:
        raise UsageError(f"{name}: twins: {missing[0]!r} is no student; there are {', '.join(recipe.students)}")
    return recipe
