"""What other systems call users, items, times and event types, and which columns are sensitive."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


INTERACTION_NAMES: Mapping[str, tuple[str, ...]] = {
    "user_id": _words(
        "user_id user userid uid visitor_id visitorid visitor household_id household customer_id customer "
        "member_id account_id reviewer_id reviewer author_id client_id person_id session_id session"
    ),
    "item_id": _words(
        "item_id item itemid iid product_id product movie_id movie track_id track song_id song artist_id "
        "artist video_id show_id article_id article news_id book_id isbn asin parent_asin sku object_id "
        "content_id business_id place_id venue_id location_id recipe_id game_id app_id listing_id "
        "offer_id"
    ),
    "timestamp": _words(
        "timestamp time event_time event_timestamp unix_timestamp unix_review_time ts datetime date "
        "date_time created_at occurred_at sent_at event_date transaction_date visit_time epoch"
    ),
    "event_type": _words("event_type event type action behavior behaviour behavior_type interaction"),
    "event_value": _words("event_value value rating score stars fraction"),
    "location": _words("location country country_code region"),
}
CATALOGUE_NAMES: Mapping[str, tuple[str, ...]] = {
    "categories": _words("categories category genres genre category_l1 tags department topics topic"),
    "brand": _words("brand manufacturer maker store vendor supplier content_owner publisher"),
    "seller": _words("seller seller_id seller_name merchant merchant_id merchant_name shop shop_id"),
    "price": _words("price list_price unit_price amount"),
    "time": _words("created_at creation_timestamp release_date released_at published_at date year"),
    "text": _words("title name product_name item_name headline description product_description"),
}
CATEGORY_LEVELS = ("category_l1", "category_l2", "category_l3")
EVENT_NAMES: Mapping[str, tuple[str, ...]] = {
    "purchase": _words("purchase buy order transaction bought order_completed purchase_complete"),
    "add_to_cart": _words("add_to_cart addtocart cart product_added"),
    "view": _words("view pv detail_page_view product_viewed view_item pageview"),
    "click": _words("click select_item product_clicked"),
    "watch": _words("watch play stream listen"),
    "impression": _words("impression list_view view_item_list"),
}
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "interactions": ("user_id", "item_id", "timestamp"),
    "items": ("item_id",),
    "users": ("user_id",),
}
_OF_ANYTHING = _words(
    "gender sex age age_group age_range birth_date birth_year birthday birthdate date_of_birth dob "
    "ethnicity ethnic_group race religion religious_affiliation nationality citizenship "
    "sexual_orientation marital_status disability pregnancy pregnant political_affiliation politics"
)
_OF_PERSONS = _words(
    "income income_group household_income health health_status household_comp kids_count children "
    "union zip zip_code zipcode postcode postal_code address street email e_mail phone phone_number "
    "telephone ip ip_address latitude longitude lat lon name first_name last_name surname full_name "
    "national_id ssn passport credit_card iban device_id"
)


def plain_name(column: str) -> str:
    """A column's name in lower case with underscores, without the type that some files append to it.

    >>> plain_name("UserId"), plain_name("USER_ID"), plain_name("item_id:token"), plain_name(" Event Time ")
    ('user_id', 'user_id', 'item_id', 'event_time')
    """
    bare = column.strip().split(":")[0]
    if not bare.isupper():
        bare = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", bare)
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")


def named(aliases: Sequence[str], header: Sequence[str], taken: Collection[str] = ()) -> str | None:
    """The first column that goes by an alias, in the order of the aliases; underscores do not matter."""
    columns = {
        plain_name(column).replace("_", ""): column for column in reversed(header) if column not in taken
    }
    found = (columns.get(alias.replace("_", "")) for alias in aliases)
    return next((column for column in found if column is not None), None)


def sensitive_columns(role: str, columns: Sequence[str], allowed: Collection[str]) -> list[str]:
    """The columns that describe a person too closely to be used, unless they are allowed by name.

    What makes a person findable, such as a name or an address, is harmless in a catalogue.
    """
    names = {*_OF_ANYTHING, *(_OF_PERSONS if role == "users" else ())} - {plain_name(one) for one in allowed}
    return [column for column in columns if plain_name(column) in names]
