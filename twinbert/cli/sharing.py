"""Options that several commands have, defined once: a command takes what they make, the command line takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints


def shares(
    made: Mapping[str, Callable[..., object]], **defaults: object
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command some of whose parameters are made from options that other commands have too.

    Args:
        made: what makes each of these parameters; its own parameters are options, annotated as Typer reads them.
        defaults: of options, where this command has its own.
    """
    shared = {
        name: [one.replace(default=defaults.get(one.name, one.default)) for one in _parameters(maker, ())]
        for name, maker in made.items()
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(*positional: object, **given: Any) -> None:  # noqa: ANN401 - whatever the options are
            values = {
                name: maker(**{one.name: given.pop(one.name) for one in shared[name]}) for name, maker in made.items()
            }
            command(*positional, **values, **given)

        parameters = [one for one in _parameters(command, made) if one.name not in made]
        for options in shared.values():
            parameters += options
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parameters(function: Callable[..., object], made: Iterable[str]) -> list[inspect.Parameter]:
    """Its parameters, annotated. The types of those that are made, and of what it returns, are imported when a command
    runs, and need not be known here.
    """
    written = function.__annotations__
    unknown = {written[name]: object for name in (*made, "return") if name in written}
    annotations = get_type_hints(function, localns=unknown, include_extras=True)
    return [one.replace(annotation=annotations[one.name]) for one in inspect.signature(function).parameters.values()]
