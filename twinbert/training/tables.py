"""Configurations from TOML tables."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from twinbert.errors import UsageError

_T = TypeVar("_T")


def build(kind: type[_T], table: Mapping[str, Any], where: str) -> _T:
    """A configuration from a TOML table, its own tables first; `where` is what complaints begin with.

    Raises:
        UsageError: the table has a key that the configuration has not, lacks one, or has a value of another type.
    """
    hints = typing.get_type_hints(kind)
    for name in table:
        if name not in hints:
            raise UsageError(f"{where}: {name} is unknown; there are {', '.join(hints)}")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # configurations are dataclasses
    for one in fields:
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and one.name not in table:
            raise UsageError(f"{where}: {one.name} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in table.items()})


def merged(table: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the values of another in place of its own; where that says `false` of a table, it is left out."""
    result = dict(table)
    for name, value in override.items():
        nested = isinstance(table.get(name), Mapping)
        if nested and value is False:
            del result[name]
        else:
            result[name] = merged(table[name], value) if nested and isinstance(value, Mapping) else value
    return result


def _value(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401, PLR0911 - what TOML can say, kind by kind
    """A TOML value as a field of type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None: TOML has no null
        return _value(next(one for one in arguments if one is not type(None)), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)  # type: ignore[arg-type]  # it is a class
    if origin is Literal:
        if value in arguments:
            return value
        raise UsageError(f"{where} is {value!r}; there are {', '.join(map(str, arguments))}")
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], one, where) for one in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {name: _value(arguments[1], one, f"{where}.{name}") for name, one in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    raise UsageError(f"{where} is {value!r}, which is no {getattr(hint, '__name__', hint)}")
