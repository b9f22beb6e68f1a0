"""The kinds as tables of Markdown for the documents, taken from the code so that they are never behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from narrows.features.audit import meaning_of
from narrows.features.computed import COMPUTED
from narrows.features.kinds import KINDS, PerValue
from narrows.features.parameters import ParameterRule

VALUES: Mapping[str, str] = {
    "none": "",
    "number": "a number",
    "number?": "a number, or nothing: each event is one",
    "text": "a text",
    "any": "a number, or a text with `values`",
}


def folded_kinds() -> str:
    """The kinds that events fold into."""
    rows = [
        (f"`{name}`", meaning_of(name), VALUES[kind.VALUE], _parameters(kind.PARAMETERS), _yes(kind.IN_PAIRS))
        for name, kind in KINDS.items()
    ]
    pair = ("in a pair", meaning_of_pair(), "as its kind", _parameters(PerValue.PARAMETERS), "")
    return _table(("kind", "what it reads as", "`value`", "parameters", "in pairs"), [*rows, pair])


def computed_kinds() -> str:
    """The kinds that are computed when a request is answered."""
    rows = [
        (f"`{name}`", f"`{kind.scope}`", kind.meaning, _parameters(kind.parameters))
        for name, kind in COMPUTED.items()
    ]
    return _table(("kind", "scope", "what it reads as", "parameters"), rows)


def meaning_of_pair() -> str:
    """What a pair does, in a sentence."""
    return (PerValue.__doc__ or "").split("; state")[0].removeprefix("A pair: ").capitalize() + "."


def _parameters(rules: Mapping[str, ParameterRule]) -> str:
    told = [
        f"`{name.removesuffix('_s')}`{'' if rule.required else ' (optional)'}: {rule.meaning}; {rule.remedy}"
        for name, rule in rules.items()
    ]
    return "<br>".join(told)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _yes(flag: bool) -> str:
    return "yes" if flag else ""
