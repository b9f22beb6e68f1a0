"""What happened, as flat arrays: who, what, when and how much it was worth; the input of every fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events with an item and a positive worth, sorted by user, then time, then the order they came in.

    `users` and `items` int32[n] point into `user_ids` and `item_ids`; `times` are epoch seconds; `weights`
    are the labels of the event types. Users and items without any event are allowed. `segments` names each
    user's segment, "" for none; None where nothing is known of any.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.float64]
    weights: NDArray[np.float32]
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    segments: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def user_count(self) -> int:
        """How many users the ids name, with or without events."""
        return len(self.user_ids)

    @property
    def item_count(self) -> int:
        """How many items the ids name, with or without events."""
        return len(self.item_ids)

    def per_user(self) -> NDArray[np.int64]:
        """int64[user_count + 1]: user `u` owns the events from `offsets[u]` up to `offsets[u + 1]`."""
        return np.searchsorted(self.users, np.arange(self.user_count + 1)).astype(np.int64)

    def keep(self, chosen: NDArray[Any]) -> Interactions:
        """The chosen events (mask or ascending positions) under the same ids, so indices stay comparable."""
        columns = {name: getattr(self, name)[chosen] for name in ("users", "items", "times", "weights")}
        return replace(self, **columns)

    def segment(self, user: int) -> str:
        """The segment of a user by number, "" where it is not known."""
        return "" if self.segments is None else str(self.segments[user])

    def common_segments(self, least_users: int) -> NDArray[np.str_]:
        """The names, sorted, of the segments of at least so many users with an event."""
        if self.segments is None:
            return np.empty(0, str)
        names, counts = np.unique(self.segments[np.unique(self.users)], return_counts=True)
        return np.asarray(names[(names != "") & (counts >= least_users)])

    def places_from_end(self) -> NDArray[np.int64]:
        """int64[n]: 0 for each user's last event, 1 for the one before it."""
        ends = self.per_user()[1:]
        return np.asarray(ends[self.users] - 1 - np.arange(len(self)), np.int64)

    def last_out(self, count: int) -> tuple[Interactions, Interactions]:
        """(rest, held): each user's last `count` events held out, but never a user's first event."""
        starts = self.per_user()[:-1]
        first = np.arange(len(self)) == starts[self.users]
        held = (self.places_from_end() < count) & ~first
        return self.keep(~held), self.keep(held)


def interactions_of(
    users: ArrayLike,
    items: ArrayLike,
    times: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    catalogue: ArrayLike = (),
) -> Interactions:
    """Interactions from parallel columns of identifiers; ids come out sorted, with `catalogue` ids added.

    Events worth nothing (weight 0 or below, or not a number) are left out; without weights each is worth 1.
    """
    user_ids, user = np.unique(np.asarray(users, str), return_inverse=True)
    what, more = np.asarray(items, str), np.asarray(catalogue, str)
    item_ids, item = np.unique(np.concatenate([what, more]), return_inverse=True)
    when = np.asarray(times, np.float64)
    worth = np.ones(len(when), np.float32) if weights is None else np.asarray(weights, np.float32)
    return coded_interactions(user, item[: len(what)], when, worth, user_ids, item_ids)


def coded_interactions(
    users: NDArray[Any],
    items: NDArray[Any],
    times: NDArray[np.float64],
    weights: NDArray[np.float32],
    user_ids: NDArray[Any],
    item_ids: NDArray[Any],
) -> Interactions:
    """Interactions from columns of codes into the ids; leaves out events worth nothing or without a time."""
    counted = np.flatnonzero((weights > 0) & np.isfinite(times))
    order = counted[np.lexsort((times[counted], users[counted]))]
    return Interactions(
        users[order].astype(np.int32),
        items[order].astype(np.int32),
        times[order],
        weights[order],
        user_ids,
        item_ids,
    )
