"""Configurations from TOML tables."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from twinbert.errors import UsageError

_T = TypeVar("_T")


def build(kind: type[_T], table: Mapping[str, Any], where: str, *, base: _T | None = None) -> _T:
    """A configuration from a TOML table, its own tables first.

    Args:
        kind: a dataclass.
        table: values of its fields.
        where: what complaints begin with.
        base: has the values of fields that the table has not; None: their defaults.

    Raises:
        UsageError: the table has a key that the configuration has not, lacks one, or has a value of another type.
    """
    hints = typing.get_type_hints(kind)
    for name in table:
        if name not in hints:
            raise UsageError(f"{where}: {name} is unknown; there are {', '.join(hints)}")
    defaults = {one.name: _default(one) for one in dataclasses.fields(kind)}  # type: ignore[arg-type]  # configurations are dataclasses
    for name, default in defaults.items():
        if base is None and default is dataclasses.MISSING and name not in table:
            raise UsageError(f"{where}: {name} is missing")
    values = {}
    for name, value in table.items():
        # A table within says what differs from the values that stand there: those of this field, not of its kind.
        inner = defaults[name] if base is None else getattr(base, name)
        values[name] = _value(hints[name], value, f"{where}: {name}", inner)
    return kind(**values) if base is None else dataclasses.replace(base, **values)  # type: ignore[type-var]  # likewise


def _default(one: dataclasses.Field[Any]) -> Any:  # noqa: ANN401 - whatever a field holds
    """A field's default, or MISSING."""
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


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


def _value(hint: Any, value: Any, where: str, base: Any = None) -> Any:  # noqa: ANN401, PLR0911 - what TOML can say, kind by kind
    """A TOML value as a field of type `hint`; `base` is what a table within changes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None: TOML has no null
        return _value(next(one for one in arguments if one is not type(None)), value, where, base)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where, base=base if isinstance(base, hint) else None)  # type: ignore[arg-type]  # it is a class
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
