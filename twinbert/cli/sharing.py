"""Options that several commands have, defined once: a command takes what they make, the command line takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def shares(
    name: str, options: Callable[..., object], **defaults: object
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command that has a parameter `name`: it is made by `options`, whose own parameters are options.

    Args:
        name: of the parameter.
        options: makes it; its parameters are annotated as Typer reads them.
        defaults: of those parameters, where this command has its own.
    """
    shared = [one.replace(default=defaults.get(one.name, one.default)) for one in _parameters(options, name)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(*positional: object, **given: Any) -> None:  # noqa: ANN401  whatever the options are
            made = options(**{one.name: given.pop(one.name) for one in shared})
            command(*positional, **{name: made}, **given)

        own = [one for one in _parameters(command, name) if one.name != name]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        return run

    return decorate


def _parameters(function: Callable[..., object], made: str) -> list[inspect.Parameter]:
    """Its parameters, annotated. The type of `made` is imported when a command runs, and need not be known here."""
    unknown = {function.__annotations__[name]: object for name in (made, "return") if name in function.__annotations__}
    annotations = get_type_hints(function, localns=unknown, include_extras=True)
    return [one.replace(annotation=annotations[one.name]) for one in inspect.signature(function).parameters.values()]
