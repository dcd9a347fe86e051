"""As much of PromQL as is needed to hold our queries against what servers export."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_WORD = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?\s*(\(?)")
_OPERATORS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring", "group_left", "group_right"}


@dataclass(frozen=True)
class Selector:
    """A metric, and the conditions on its labels: name, operator, value."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels is meant."""
        return all(_holds(labels.get(name, ""), operator, value) for name, operator, value in self.matchers)

    def alternatives(self) -> Iterator[Selector]:
        """The selector once for each alternative of its `a|b` patterns: each of them is to match something."""
        for place, (name, operator, value) in enumerate(self.matchers):
            if operator == "=~" and re.fullmatch(r"[\w|]+", value):
                others = self.matchers[:place] + self.matchers[place + 1 :]
                for one in value.split("|"):
                    yield Selector(self.metric, (*others, (name, "=", one)))
        yield self


def _holds(found: str, operator: str, value: str) -> bool:
    matched = re.fullmatch(value, found) is not None if "~" in operator else found == value
    return matched != operator.startswith("!")


def selectors(expression: str) -> list[Selector]:
    """The selectors of an expression."""
    without_labels = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    without_durations = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", without_labels)
    return [
        Selector(name, tuple(_MATCHER.findall(labels)))
        for name, labels, call in _WORD.findall(without_durations)
        if not call and name not in _OPERATORS
    ]


def grouped_by(expression: str) -> set[str]:
    """The labels that an expression's aggregations keep."""
    return {label.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", expression) for label in group.split(",")}
