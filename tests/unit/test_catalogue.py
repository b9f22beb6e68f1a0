"""A catalogue's table becomes columns under the names of the parts they play."""

from dataclasses import replace

import numpy as np
import pytest

from narrows.catalogue import item_columns
from narrows.errors import InvalidInput
from narrows.settings import Catalogue

SHOP = Catalogue(
    id="sku", text=("name",), categories="genres", brand="maker", price="eur", time="born", regions="sold_in"
)
TABLE = {
    "sku": ["a", "b", "c"],
    "name": ["Lamp", None, "é" * 60],
    "genres": [["light", "home"], "tools|home", None],
    "maker": ["acme", "", None],
    "eur": [9.5, "12", "none"],
    "born": [100.0, None, 300.0],
    "sold_in": [["DE"], None, ["US", "DE"]],
}


def test_each_part_gets_its_column_and_vocabulary() -> None:
    """Lists and |-joined text give the same codes; what is missing is -1 or nan, never 0."""
    items = item_columns(TABLE, SHOP)
    assert items.ids == ("a", "b", "c")
    assert items.vocabularies["category"] == ("home", "light", "tools")
    assert items.columns["category"].tolist() == [1, 2, -1]
    assert items.columns["category_all"].tolist() == [[1, 0, -1, -1], [2, 0, -1, -1], [-1] * 4]
    assert items.columns["brand"].tolist() == [0, -1, -1]
    np.testing.assert_array_equal(items.columns["price"], np.array([9.5, 12.0, np.nan], np.float32))
    np.testing.assert_array_equal(items.columns["created_at"], [100.0, np.nan, 300.0])
    assert items.columns["regions"][2].tolist() == [1, 0, -1, -1]


def test_a_seller_is_one_whole_name() -> None:
    """Whatever stands in it, unlike a brand, of which a file may name several; a number is its digits."""
    table = {"sku": list("abcd"), "shop": ["Smith|Co", None, 7, ""], "maker": ["x|y", "x", None, ""]}
    items = item_columns(table, replace(SHOP, seller="shop"))
    assert items.vocabularies["seller"] == ("7", "Smith|Co")
    assert items.columns["seller"].tolist() == [1, -1, 0, -1]
    assert items.columns["brand"].tolist() == [0, 0, -1, -1]
    assert "seller" not in item_columns(table, SHOP).columns


def test_a_number_that_no_item_may_have_is_missing() -> None:
    """float32 would make it infinite, and every number that is computed from it."""
    table = {"sku": list("abcd"), "eur": [1.0, 1e39, "1e300", 10**400]}
    np.testing.assert_array_equal(item_columns(table, SHOP).columns["price"], [1.0, np.nan, np.nan, np.nan])


def test_a_title_is_cut_between_characters() -> None:
    """Sixty two-byte letters are 120 bytes: 48 whole ones fit into 96."""
    titles = item_columns(TABLE, SHOP).columns["title"]
    assert [title.decode() for title in titles] == ["Lamp", "", "é" * 48]


def test_parts_that_the_table_lacks_have_no_column() -> None:
    """A catalogue of ids alone is enough."""
    assert dict(item_columns({"sku": ["a"]}, SHOP).columns) == {}


def test_a_price_stands_among_those_of_its_category() -> None:
    """The cheapest at 0, the dearest at 1, equal ones at their middle, one alone at 0.5, none at nan."""
    table = {
        "sku": list("abcdefg"),
        "genres": ["x", "x", "x", "x", "y", "x", None],
        "eur": [1.0, 2.0, 2.0, 9.0, 5.0, None, 3.0],
    }
    found = item_columns(table, SHOP).columns["price_position"]
    np.testing.assert_allclose(found, [0.0, 0.5, 0.5, 1.0, 0.5, np.nan, 0.5])
    assert np.isnan(item_columns({**table, "eur": [None] * 7}, SHOP).columns["price_position"]).all()


def test_an_attribute_is_a_column_of_numbers_under_its_own_name() -> None:
    """What is no number is missing."""
    shop = replace(SHOP, attributes=("stock", "absent"))
    columns = item_columns({"sku": ["a", "b"], "stock": [3, "many"]}, shop).columns
    np.testing.assert_array_equal(columns["stock"], np.array([3.0, np.nan], np.float32))
    assert "absent" not in columns


@pytest.mark.parametrize(
    ("table", "value"), [({"x": []}, "['x']"), ({"sku": ["a", "a"]}, "'a'"), ({"sku": ["a", None]}, "row 1")]
)
def test_a_catalogue_without_usable_ids_is_refused(table: dict[str, list[str]], value: str) -> None:
    """The error names the column and what stands there."""
    with pytest.raises(InvalidInput, match="sku") as caught:
        item_columns(table, SHOP)
    assert value in str(caught.value)
