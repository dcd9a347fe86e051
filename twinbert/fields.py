"""JSON files that others wrote, read field by field: whatever is wrong with one, its path and field are named."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from twinbert.errors import BundleError

_T = TypeVar("_T")


def parse_json(path: Path, content: bytes, kind: type[_T], *, remedy: str) -> _T:
    """The content of a JSON file, which is to be a `kind`: a dict or a list.

    Raises:
        BundleError: it is none; the message names `path` and ends with `remedy`.
    """
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{path}: is not JSON ({error}); {remedy}") from error
    except RecursionError:
        raise BundleError(f"{path}: is nested too deeply to be read; {remedy}") from None
    if not isinstance(parsed, kind):
        raise BundleError(f"{path}: holds no JSON {'object' if kind is dict else 'array'}; {remedy}")
    return parsed


class Fields:
    """Typed access to a JSON object. Whatever a field should not be is a BundleError that says what it must be.

    Args:
        path: the file, for messages.
        content: the object.
        remedy: what to do about a wrong field, for messages.
        where: path of the object inside the file, up to and including a dot.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], *, remedy: str, where: str = "") -> None:
        self._path = path
        self._content = content
        self._remedy = remedy
        self._where = where

    def has(self, name: str) -> bool:
        """Whether the field is there and is not null."""
        return self._content.get(name) is not None

    def text(self, name: str) -> str:
        """A string that is not empty."""
        value = self._content.get(name)
        if isinstance(value, str) and value:
            return value
        raise self._wrong(name, "a string")

    def choice(self, name: str, *choices: str) -> str:
        """One of `choices`."""
        value = self._content.get(name)
        if isinstance(value, str) and value in choices:
            return value
        raise self._wrong(name, " or ".join(choices))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false; without `default` the field has to be there."""
        value = self._content.get(name, default)
        if isinstance(value, bool):
            return value
        raise self._wrong(name, "true or false")

    def count(self, name: str, *, above: int = 0, most: int | None = None) -> int:
        """A whole number."""
        value = self._content.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > above and (most is None or value <= most):
            return value
        raise self._wrong(name, f"a whole number above {above}" + (f" and at most {most}" if most else ""))

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; without `default` the field has to be there."""
        value = self._content.get(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
        raise self._wrong(name, "a number")

    def values(self, name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """An object with whatever it holds; without `default` the field has to be there."""
        value = self._content.get(name, default)
        if isinstance(value, dict):
            return value
        raise self._wrong(name, "an object")

    def fields(self, name: str) -> Fields:
        """An object, to be read field by field too."""
        return Fields(self._path, self.values(name), remedy=self._remedy, where=f"{self._where}{name}.")

    def mapping(self, name: str, read: Callable[[Fields], _T]) -> dict[str, _T]:
        """An object of objects, of which `read` makes what is wanted."""
        inner = self.fields(name)
        return {key: read(inner.fields(key)) for key in inner._content}

    def _wrong(self, name: str, wanted: str) -> BundleError:
        # Abbreviated: a value from outside may be of any length and depth.
        found = f"is {reprlib.repr(self._content[name])}" if name in self._content else "is missing"
        return BundleError(f"{self._path}: {self._where}{name} {found}, it must be {wanted}; {self._remedy}")
