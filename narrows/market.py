"""A market's users and catalogue, drawn from a seed, and the truth about who likes what."""

from __future__ import annotations

import numpy as np

from narrows.errors import InvalidInput

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Times = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

COUNTRIES = ("US", "DE", "FR", "GB", "JP")
SEGMENTS = ("bargain", "family", "fashion", "maker", "outdoor", "premium")
DAY_S = 86_400.0
SUCCESSORS = 4
OFFERS_A_SELLER = 20
# fmt: off
_NOUNS = (
    "Audio", "Bags", "Bedding", "Bikes", "Books", "Cameras", "Camping", "Candles", "Chairs", "Coffee",
    "Cookware", "Dolls", "Drones", "Fitness", "Games", "Garden", "Guitars", "Hats", "Jackets", "Jewels",
    "Lamps", "Laptops", "Pens", "Pets", "Phones", "Rugs", "Shoes", "Skis", "Tools", "Watches",
)
# fmt: on
_MAKERS = ("Alder", "Birch", "Cedar", "Delta", "Ember", "Fjord", "Grove", "Harbor")
_DIMENSIONS = 12


class World:
    """Users with latent tastes and a catalogue; `as_of` is the market's present, in epoch seconds.

    Nine items in ten are older than 60 days at `as_of`; the others appear during the 30 days before it.
    An item's `successors` are the few that people go on to from it, likeliest first.
    """

    def __init__(self, seed: int, users: int, items: int, *, categories: int, as_of: float) -> None:
        for field, value, least in (
            ("users", users, 1),
            ("items", items, 100),
            ("categories", categories, 1),
        ):
            if value < least:
                raise InvalidInput(field, value, f"a market needs at least {least}")
        self.seed, self.users, self.items, self.as_of = seed, users, items, as_of
        self.categories = tuple(_NOUNS[c % 30] + (str(c // 30) if c >= 30 else "") for c in range(categories))
        self.user_ids = [f"user-{n:05d}" for n in range(users)]
        self.item_ids = [f"item-{n:05d}" for n in range(items)]
        rng = np.random.default_rng([seed, 0])
        self._draw_vectors(rng)
        self._draw_offers(rng)
        self._draw_users(rng)
        self._draw_successors(rng)

    def true_preference(self, user_id: str, now: float | None = None) -> Floats:
        """How much the user likes each of `item_ids`; -inf for what it cannot buy at `now`."""
        visitor, everything = np.array([self.user_number(user_id)]), np.arange(self.items)[None, :]
        liking: Floats = self.utility(visitor, everything)[0]
        moment = np.array([self.as_of if now is None else now])
        liking[~self.available(visitor, everything, moment)[0]] = -np.inf
        return liking

    def preferred(self, user_id: str, k: int, now: float | None = None) -> list[str]:
        """The k items that this user would truly prefer, best first."""
        liking = self.true_preference(user_id, now)
        return [self.item_ids[i] for i in np.argsort(-liking, kind="stable")[:k]]

    def utility(self, visitor: Integers, items: Integers) -> Floats:
        """Liking of items[n, k] by visitor[n]: taste, quality, and what the price means to this person."""
        liking = 5.0 * np.einsum("nd,nkd->nk", self._tastes[visitor], self._vectors[items])
        liking += 0.35 * self.quality[items] - self._thrift[visitor][:, None] * self._dearness[items]
        return np.asarray(liking, dtype=np.float32)

    def available(self, visitor: Integers, items: Integers, time: Times) -> Flags:
        """Whether items[n, k] exist at time[n], are in stock, and are sold in the country of visitor[n]."""
        sold = self.sold_in[self.country[visitor][:, None], items]
        return np.asarray(sold & (self.stock[items] > 0) & (self.created_at[items] <= time[:, None]))

    def catalogue(self) -> list[dict[str, object]]:
        """The items as rows; `regions` are where the item is sold, `stock` is in pieces, `margin` a share."""
        return [self._offer(i) for i in range(self.items)]

    def twin(self, item: int, item_id: str) -> dict[str, object]:
        """The row of an offer that is not in the catalogue: everybody likes it as they like `item`.

        It is another offer of the same maker, kind and price, and nobody has seen it yet.
        """
        return {**self._offer(item), "item_id": item_id, "title": f"{self._brand_name(item)} {item_id}"}

    def people(self) -> list[dict[str, object]]:
        """The users as rows: user_id, country, segment."""
        return [
            {"user_id": user_id, "country": COUNTRIES[self.country[n]], "segment": SEGMENTS[self.segment[n]]}
            for n, user_id in enumerate(self.user_ids)
        ]

    def country_of(self, visitor: Integers) -> list[str]:
        """The country of each user, by number."""
        return [COUNTRIES[country] for country in self.country[visitor]]

    def described(self, item: int) -> dict[str, object]:
        """What an event says of the item: category, brand, price."""
        category = self.categories[self.category[item]]
        return {"category": category, "brand": self._brand_name(item), "price": float(self.price[item])}

    def user_number(self, user_id: str) -> int:
        """The number of a user of this market; refuses a stranger."""
        return _number("user_id", user_id, "user-", self.users)

    def item_number(self, item_id: str) -> int:
        """The number of an item of this market; refuses what it does not sell."""
        return _number("item_id", item_id, "item-", self.items)

    def in_category(self, category: Integers, rng: np.random.Generator) -> Integers:
        """A random item of each category that is asked for."""
        size = self._starts[category + 1] - self._starts[category]
        offset = self._starts[category] + (rng.random(category.shape) * size).astype(np.int64)
        return np.asarray(self._by_category[np.minimum(offset, self.items - 1)])

    def famous(self, shape: tuple[int, ...], rng: np.random.Generator) -> Integers:
        """Items drawn by how good they are: what everybody has heard of."""
        drawn: Integers = np.searchsorted(self._fame, rng.random(shape) * self._fame[-1])
        return np.minimum(drawn, self.items - 1)

    def liked(self, visitor: Integers, width: int, rng: np.random.Generator) -> Integers:
        """For each visitor, items of the categories that it likes."""
        drawn = rng.random((len(visitor), width))[:, :, None] > self._category_taste[visitor][:, None, :]
        return self.in_category(np.minimum(drawn.sum(axis=2), len(self.categories) - 1), rng)

    def visitors(self, n: int, rng: np.random.Generator) -> Integers:
        """Who comes: users drawn by how active they are."""
        drawn: Integers = np.searchsorted(self._activity, rng.random(n))
        return np.minimum(drawn, self.users - 1)

    def most_active(self) -> int:
        """The number of the user who comes most often."""
        return int(self.by_activity()[0])

    def by_activity(self) -> Integers:
        """The numbers of the users, those who come most often first."""
        return np.argsort(-np.diff(self._activity, prepend=0.0), kind="stable")

    def _draw_vectors(self, rng: np.random.Generator) -> None:
        n, kinds = self.items, len(self.categories)
        self._category_vectors = _unit(rng.normal(size=(kinds, _DIMENSIONS)))
        self.category = rng.integers(kinds, size=n)
        self.second_category = np.where(rng.random(n) < 0.3, (self.category + 1) % kinds, -1)
        self.brand = rng.integers(len(_MAKERS), size=n)
        brand_vectors = _unit(rng.normal(size=(kinds * len(_MAKERS), _DIMENSIONS)))
        kin = brand_vectors[self.category * len(_MAKERS) + self.brand]
        own = _unit(rng.normal(size=(n, _DIMENSIONS)))
        self._vectors = _unit(self._category_vectors[self.category] + 0.6 * kin + 0.6 * own)
        self._by_category = np.argsort(self.category, kind="stable")
        self._starts = np.searchsorted(self.category[self._by_category], np.arange(kinds + 1))

    def _draw_offers(self, rng: np.random.Generator) -> None:
        n, kinds = self.items, len(self.categories)
        self.quality = rng.normal(size=n).astype(np.float32)
        self._fame = np.cumsum(np.exp(0.9 * self.quality.astype(np.float64)))
        dear = rng.normal(3.2, 0.4, kinds)[self.category] + rng.normal(0, 0.5, n)
        self.price = np.round(np.exp(dear), 2)
        self.margin = np.array([round(0.1 + 0.4 * (i * 7919 % 1000) / 1000, 3) for i in range(n)])
        self._dearness = np.asarray((dear - dear.mean()) / dear.std(), dtype=np.float32)
        old = self.as_of - DAY_S * (60 + rng.exponential(300, n))
        new = self.as_of - DAY_S * 30 * rng.random(n)
        self.created_at = np.where(rng.random(n) < 0.9, old, new)
        self.stock = np.where(rng.random(n) < 0.03, 0, rng.integers(1, 500, n))
        everywhere = rng.random(n) < 0.9
        self.sold_in = everywhere | (rng.random((len(COUNTRIES), n)) < 0.5)
        self.sold_in[0] |= ~self.sold_in.any(axis=0)

    def _draw_users(self, rng: np.random.Generator) -> None:
        n, kinds = self.users, len(self.categories)
        self.segment = rng.integers(len(SEGMENTS), size=n)
        self.country = rng.choice(len(COUNTRIES), size=n, p=[0.4, 0.2, 0.15, 0.15, 0.1])
        loved = rng.dirichlet(np.full(kinds, 0.3), size=len(SEGMENTS))[self.segment]
        local = rng.dirichlet(np.full(kinds, 0.5), size=len(COUNTRIES))[self.country]
        personal = rng.dirichlet(np.full(kinds, 0.12), size=n)
        weights = 0.25 * loved + 0.1 * local + 0.65 * personal
        self._category_taste = weights.cumsum(axis=1)
        noise = _unit(rng.normal(size=(n, _DIMENSIONS)))
        self._tastes = _unit(weights @ self._category_vectors + 0.25 * noise)
        thrift = np.full(n, 0.2)
        thrift[self.segment == SEGMENTS.index("bargain")] = 0.7
        thrift[self.segment == SEGMENTS.index("premium")] = -0.4
        self._thrift = (thrift + rng.normal(0, 0.15, n)).astype(np.float32)
        activity = rng.lognormal(0.0, 0.7, n)
        self._activity = np.cumsum(activity / activity.sum())

    def _draw_successors(self, rng: np.random.Generator) -> None:
        """Successors are near the item, of its category or the next one, and good."""
        complement = (self.category + 1) % len(self.categories)
        nearby = np.where(rng.random((self.items, 64)) < 0.7, self.category[:, None], complement[:, None])
        proposals = self.in_category(nearby, rng)
        score = 2.0 * np.einsum("id,ipd->ip", self._vectors, self._vectors[proposals])
        score += 0.4 * self.quality[proposals] + 0.5 * rng.gumbel(size=proposals.shape)
        score[(proposals == np.arange(self.items)[:, None]) | repeated(proposals)] = -np.inf
        best = np.argsort(-score, axis=1)[:, :SUCCESSORS]
        self.successors = np.take_along_axis(proposals, best, axis=1)

    def _offer(self, i: int) -> dict[str, object]:
        return {
            "item_id": self.item_ids[i],
            "title": f"{self._brand_name(i)} {i}",
            "description": f"{' and '.join(self._category_names(i))} by {self._brand_name(i)}",
            "category": self._category_names(i),
            "brand": self._brand_name(i),
            "seller": f"Seller {i * 7919 % max(1, self.items // OFFERS_A_SELLER)}",
            "price": float(self.price[i]),
            "created_at": float(self.created_at[i]),
            "regions": [name for name, sold in zip(COUNTRIES, self.sold_in[:, i], strict=True) if sold],
            "stock": int(self.stock[i]),
            "margin": float(self.margin[i]),
        }

    def _brand_name(self, item: int) -> str:
        return f"{_MAKERS[self.brand[item]]} {self.categories[self.category[item]]}"

    def _category_names(self, item: int) -> list[str]:
        both = (self.category[item], self.second_category[item])
        return [self.categories[c] for c in both if c >= 0]


def repeated(items: Integers) -> Flags:
    """Which entries of each row stand for an item that the row already named."""
    order = np.argsort(items, axis=1, kind="stable")
    ranked = np.take_along_axis(items, order, axis=1)
    same = np.zeros(items.shape, dtype=np.bool_)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    found = np.zeros_like(same)
    np.put_along_axis(found, order, same, axis=1)
    return found


def _unit(vectors: np.ndarray) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def _number(field: str, value: str, prefix: str, size: int) -> int:
    digits = value.removeprefix(prefix)
    if not value.startswith(prefix) or not digits.isdecimal() or int(digits) >= size:
        raise InvalidInput(field, value, f"this market knows {prefix}00000 to {prefix}{size - 1:05d}")
    return int(digits)
