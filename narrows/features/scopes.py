"""Whose feature it is: what the text of a scope says of the state that holds it and of its key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Base = Literal["visitor", "user", "session", "item", "by", "request", "cross"]

VISITOR_SCOPES = ("visitor", "user", "session")
CROSS = "visitor x item"
_PAIR = re.compile(r"(visitor|user|session) x ([a-z][a-z0-9_]*)")
_GROUP = re.compile(r"by:([a-z][a-z0-9_]*)")
FORMS = (*VISITOR_SCOPES, "item", "visitor x <property>", "by:<property>", "request", CROSS)


@dataclass(frozen=True)
class Scope:
    """A scope in parts; `by` is the property of a pair's second half, or of a group.

    `visitor`, `user` and `session` are folded into a visitor's state; `item` and `by` have keys of their own;
    `request` and `cross` are computed when a request is answered.
    """

    base: Base
    by: str = ""

    @property
    def of_visitor(self) -> bool:
        """Whether a visitor's state holds it."""
        return self.base in VISITOR_SCOPES

    @property
    def pair(self) -> bool:
        """Whether a visitor has a value of it for each value of a property."""
        return self.of_visitor and self.by != ""

    @property
    def folded(self) -> bool:
        """Whether events fold into it; the others are computed from the request and from what is folded."""
        return self.base not in ("request", "cross")


def scope_of(text: str) -> Scope | None:
    """The scope that a declaration names, None for a text that is none.

    >>> scope_of("visitor x category")
    Scope(base='visitor', by='category')
    """
    if text in (*VISITOR_SCOPES, "item", "request"):
        return Scope(text)  # type: ignore[arg-type]  # narrowed by the line above
    if text == CROSS:
        return Scope("cross")
    if pair := _PAIR.fullmatch(text):
        return Scope(pair[1], pair[2])  # type: ignore[arg-type]  # one of the three of the pattern
    group = _GROUP.fullmatch(text)
    return Scope("by", group[1]) if group else None
