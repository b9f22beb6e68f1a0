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
        ("", "send a non-empty string, or leave it out"),
        ("s" * 257, "at most 256"),
        ("\ud800", "valid Unicode"),
    ],
)
def test_a_seller_that_is_no_name_is_told(seller: object, remedy: str) -> None:
    """By field, with what to send instead."""
    error = refused(seller=seller)
    assert error.field == "seller"
    assert remedy in error.remedy


@pytest.mark.parametrize("value", [-1, -0.01, -1e16, 1e16, 10**400, float("nan"), float("inf"), True, "9.50"])
@pytest.mark.parametrize("name", ["price", "stock"])
def test_one_remedy_says_the_whole_range(name: str, value: object) -> None:
    """Whoever follows it is not told of another bound next time."""
    assert refused(**{name: value}).remedy == "send a finite number from 0 to 1e+15, or leave it out"


def test_a_number_of_the_apps_own_may_be_below_zero() -> None:
    """A margin may; the ends of the range are in it."""
    for sent in ({"margin": -1e15}, {"margin": 1e15, "price": 0}, {"price": 1e15, "stock": 0}):
        assert parse_item({"item_id": "a", **sent}, CATALOGUE).values == sent
    assert refused(margin=-1e16).remedy == "send a finite number from -1e+15 to 1e+15, or leave it out"


@pytest.mark.parametrize("item_id", ["", " \n"])
def test_an_id_cannot_be_left_out(item_id: str) -> None:
    """So that the remedy does not say so."""
    assert refused(item_id=item_id).remedy == "send a non-empty string"
    assert refused(item_id=None).remedy == "send a string"
