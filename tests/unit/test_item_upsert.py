"""What may be sent of an item, and what to send instead of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from narrows.errors import InvalidInput
from narrows.item_upsert import parse_item
from narrows.settings import load_app

CATALOGUE = load_app(Path(__file__).parents[2] / "apps" / "shopnow").catalogue


def refused(**values: Any) -> InvalidInput:
    """The error for an item with these values."""
    with pytest.raises(InvalidInput) as error:
        parse_item({"item_id": "a", **values}, CATALOGUE)
    return error.value


def test_an_item_may_have_a_seller() -> None:
    """One, by name; null is none."""
    assert parse_item({"item_id": "a", "seller": "Smith | Co"}, CATALOGUE).values == {"seller": "Smith | Co"}
    assert parse_item({"item_id": "a", "seller": None}, CATALOGUE).values == {}


@pytest.mark.parametrize(
    ("seller", "remedy"),
    [
        (["s1", "s2"], "send a string"),
        (7, "send a string"),
        ("", "leave the field out"),
        ("s" * 257, "at most 256"),
        ("\ud800", "valid Unicode"),
    ],
)
def test_a_seller_that_is_no_name_is_told(seller: object, remedy: str) -> None:
    """By field, with what to send instead."""
    error = refused(seller=seller)
    assert error.field == "seller"
    assert remedy in error.remedy
