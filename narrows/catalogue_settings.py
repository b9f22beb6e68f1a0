"""Which columns of an app's catalogue play which part, as `[catalogue]` in app.toml says."""

from __future__ import annotations

from dataclasses import dataclass

from narrows.toml_reading import Table

PARTS = frozenset(
    {"category", "category_all", "brand", "seller", "price", "price_position", "created_at", "regions"}
    | {"title", "text", "text_mark", "deleted"}
)
"""The columns that the engine itself reads of a catalogue, whatever the app calls them."""


@dataclass(frozen=True)
class Catalogue:
    """Which item columns play which part; "" and () where the catalogue has no such column.

    `stock` tells how many pieces there are: an item with 0 is not shown from the moment it is sent. `seller`
    is who offers an item: one for each.
    """

    id: str
    text: tuple[str, ...] = ()
    categories: str = ""
    brand: str = ""
    price: str = ""
    time: str = ""
    regions: str = ""
    stock: str = ""
    attributes: tuple[str, ...] = ()
    seller: str = ""


def read_catalogue(table: Table) -> Catalogue:
    """The parts that a table names; an attribute may not have the name of one of the engine's columns."""
    catalogue = Catalogue(
        id=table.text("id"),
        text=table.texts("text", ()),
        categories=table.text("categories", ""),
        brand=table.text("brand", ""),
        price=table.text_or_false("price"),
        time=table.text("time", ""),
        regions=table.text("regions", ""),
        stock=table.text("stock", ""),
        attributes=table.texts("attributes", ()),
        seller=table.text("seller", ""),
    )
    for name in PARTS.intersection(catalogue.attributes):
        table.problem("attributes", name, "the engine has a column of this name; rename the attribute")
    table.finish()
    return catalogue
