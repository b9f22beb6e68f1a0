"""A session becomes a user's: what was anonymous moves once, and what comes late is redirected.

States that must change together, because something moves from one to the other, come out as one group: the
store writes it whole or not at all. Everything else is a group of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from narrows.events import Event, session_key, user_key
from narrows.features.items import streamed
from narrows.features.registry import FeatureSet
from narrows.features.ring import digest_of, knows
from narrows.features.state import (
    SESSIONS,
    Arrival,
    VisitorState,
    bounded,
    counts,
    fold,
    is_new,
    latest,
    mark_of,
)

USER = "u#"


@dataclass(frozen=True)
class StateFeatures:
    """Which of an app's features each state holds.

    A user's: those of the scopes visitor and user. A session's: those of visitor until it is merged, and
    those of session, which take every event of the session, whoever it belongs to. `item` has those that
    are streamed into partials.
    """

    every: FeatureSet
    of_user: FeatureSet
    of_session: FeatureSet
    visitor: FeatureSet
    session: FeatureSet
    item: FeatureSet

    @classmethod
    def of(cls, feature_set: FeatureSet) -> StateFeatures:
        return cls(
            every=feature_set,
            of_user=feature_set.scoped("visitor", "user"),
            of_session=feature_set.scoped("visitor", "session"),
            visitor=feature_set.scoped("visitor"),
            session=feature_set.scoped("session"),
            item=streamed(feature_set),
        )


def keys_of(arrivals: Sequence[Arrival]) -> set[str]:
    """The states that these events touch, as far as the events tell."""
    return {key for one in arrivals for key in touched(one.event)}


def touched(event: Event) -> tuple[str, ...]:
    """The state that the event folds into, and that of its session where it is a user's."""
    if event.user_id and event.session_id:
        return user_key(event.user_id), session_key(event.session_id)
    return (event.visitor_key,)


def followed(arrivals: Sequence[Arrival], states: Mapping[str, VisitorState]) -> set[str]:
    """The users' states that anonymous events of merged sessions are redirected to."""
    origins = (states.get(one.event.visitor_key) for one in arrivals)
    return {one.merged_into for one in origins if one is not None and one.merged_into}


def advance(
    arrivals: Sequence[Arrival], before: Mapping[str, VisitorState], features: StateFeatures
) -> list[dict[str, VisitorState]]:
    """The states that these events change, in groups to be written together.

    `before` holds the stored states of `keys_of` and `followed`; one that is not there was never stored.
    Events that are in the states already change nothing, so a batch may come again, in whatever pieces.
    """
    work = _Work(before, features)
    ordered = sorted(arrivals, key=lambda one: one.sequence)
    through: dict[tuple[str, str], list[Arrival]] = defaultdict(list)
    own: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in ordered:
        key, *sessions = touched(arrival.event)
        own[key].append(arrival)
        for session in sessions:
            through[key, session].append(arrival)
            if counts(arrival.event) and is_new(work.state(key), arrival):
                work.login(key, session)
    for key, records in own.items():
        work.fold_own(key, records)
    if features.session.features:
        for (user, session), records in through.items():
            work.fold_session(session, records, through=user)
    return work.groups()


class _Work:
    """The states while a batch goes into them, and which of them hang together."""

    def __init__(self, before: Mapping[str, VisitorState], features: StateFeatures) -> None:
        self.after: dict[str, VisitorState] = {}
        self._before = before
        self._features = features
        self._links: list[tuple[str, str]] = []

    def state(self, key: str) -> VisitorState:
        return self.after.get(key) or self._before.get(key) or VisitorState()

    def login(self, user: str, session: str) -> None:
        """Move what the session holds of its visitor into the user; nothing where it follows the user."""
        came = self.state(session)
        if came.merged_into == user:
            return
        self.after[user] = self._taken_in(self.state(user), session, came)
        self.after[session] = came._replace(
            features=self._features.session.only(came.features),
            do_not_show={},
            merged_into=user,
        )
        self._links.append((user, session))

    def _taken_in(self, user: VisitorState, session: str, came: VisitorState) -> VisitorState:
        merged = tuple(one for one in user.merged if one != session)
        user = user._replace(merged=(*merged, session)[-SESSIONS:])
        if came.merged_into is not None:
            return user  # what was anonymous went to its first user
        moved = self._features.visitor.only(came.features)
        marks = {mark_of(shard, session): last for shard, last in came.applied.items() if "|" not in shard}
        return user._replace(
            features=self._features.every.merge(user.features, moved),
            applied=bounded({**user.applied, **marks}),
            do_not_show=latest(user.do_not_show, came.do_not_show),
            updated_at=max(user.updated_at, came.updated_at),
        )

    def fold_own(self, key: str, records: Sequence[Arrival]) -> None:
        """Events of the key's own: into its state, and those of a merged session into its user's as well.

        Whether one of those is a duplicate is for the session's ring to say: the order of its own events is
        certain, how many others its user's state has taken in between is not.
        """
        state = self.state(key)
        if state.merged_into is None:
            held = self._features.of_user if key.startswith(USER) else self._features.of_session
            self.after[key] = fold(state, records, held)
            return
        self.fold_session(key, records)
        user = state.merged_into
        late = [
            one
            for one in records
            if is_new(state, one) and not knows(state.ring, digest_of(one.event.event_id))
        ]
        if late:
            before = self.state(user)
            after = fold(before, late, self._features.visitor, through=key)
            self.after[user] = after._replace(ring_through=before.ring_through)
            self._links.append((key, user))

    def fold_session(self, key: str, records: Sequence[Arrival], *, through: str = "") -> None:
        """Events into the scope session alone; what the visitor wants to see no more is the user's."""
        state = self.state(key)
        after = fold(state, records, self._features.session, through=through)
        self.after[key] = after._replace(do_not_show=state.do_not_show)

    def groups(self) -> list[dict[str, VisitorState]]:
        """The changed states; a state never stored is worth a write only once something is in it."""
        changed = {
            key: state
            for key, state in self.after.items()
            if state != (was := self._before.get(key) or VisitorState())
            and (was.version or state.ring or state.features or state.merged or state.merged_into)
        }
        group_of = {key: {key: state} for key, state in changed.items()}
        for left, right in self._links:
            if left in changed and right in changed and group_of[left] is not group_of[right]:
                joined = group_of[left] | group_of[right]
                group_of.update(dict.fromkeys(joined, joined))
        return list({id(group): group for group in group_of.values()}.values())
