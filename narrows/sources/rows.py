"""The step between a model's own item numbers and the rows of the snapshot that it is served beside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import BundleError
from narrows.retrieval import NO_ROWS, NO_WEIGHTS, Floats, Passes, Query, Retrieved, Rows, among
from narrows.text_vectors import text_marks
from narrows.vector_index import EVERYTHING, MOST_RESULTS, VectorIndex, Where

RowsOf = Callable[[Sequence[str]], Rows]
NOTHING = Retrieved(NO_ROWS, NO_WEIGHTS)
REGION = "region"
FURTHER = 4
JUDGED = 50
TAKEN_OUT = -np.inf
"""The mark of an item that is not to be found, whatever it had been made from."""
LOOKED_AT = 50_000
"""How far down a list one looks for what may be shown: a millisecond's worth."""


def known(rows: Rows, size: int) -> Rows:
    """The rows that a table of `size` rows holds; later rows belong to items newer than the model."""
    return rows[(rows >= 0) & (rows < size)]


def best(scores: Floats, quota: int, exclude: Rows) -> Retrieved:
    """The `quota` highest of a score for every row, best first, ties to the lower row; -inf is no answer."""
    scores[known(exclude, len(scores))] = -np.inf
    count = min(quota, len(scores))
    if count <= 0:
        return NOTHING
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    found = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
    order = np.lexsort((found, -scores[found]))[:count]
    rows = found[order].astype(np.int32)
    return Retrieved(rows, scores[rows])


def first(ordered: Rows, quota: int, query: Query) -> Rows:
    """The first `quota` rows of a list that may be shown: not excluded, and allowed by the rules.

    Where many may not, it looks further, four times as far each time, and `LOOKED_AT` rows deep at most.
    """
    found, held, begin = [NO_ROWS], 0, 0
    step = quota + len(query.exclude)
    while held < quota and begin < min(len(ordered), LOOKED_AT):
        part = ordered[begin : begin + step]
        part = part[~among(part, query.exclude)]
        found.append(part[query.passes(part)] if query.passes else part)
        held += len(found[-1])
        begin, step = begin + step, 4 * step
    return np.concatenate(found)[:quota]


def best_allowed(scores: Floats, quota: int, exclude: Rows, passes: Passes | None) -> Retrieved:
    """`best`, of those that may be shown where most of the highest may not."""
    found = best(scores, quota, exclude)
    if passes is None or not crowded(found.rows, passes):
        return found
    rows = np.flatnonzero(scores > -np.inf).astype(np.int32)
    scores[rows[~passes(rows)]] = -np.inf
    return best(scores, quota, NO_ROWS)


def judging(query: Query) -> Passes | None:
    """What tells whether rows may be shown, where it is worth while to ask."""
    return query.passes if query.scarce else None


def crowded(rows: Rows, passes: Passes) -> bool:
    """Whether most of the rows may not be shown, by `JUDGED` of them spread evenly where there are more."""
    judged = rows[:: max(1, len(rows) // JUDGED)]
    return 2 * int(np.count_nonzero(passes(judged))) < len(judged)


def nearest(
    vectors: Floats,
    wanted: Floats,
    quota: int,
    query: Query,
    index: VectorIndex | None,
    *,
    out: Callable[[], NDArray[np.bool_]] | None = None,
) -> Retrieved:
    """The rows with the highest inner products, by the index, or without one by comparing every row.

    `vectors` float32[size, d] are nan where a row has none; `out` tells which rows no index would have.
    """
    if index is None:
        scores = vectors @ wanted
        if out is not None:
            scores[out()] = np.nan
        allowing = np.where(np.isnan(scores), -np.inf, scores)
        return best_allowed(allowing, quota, query.exclude, judging(query))
    return allowed(index, wanted, quota, query)


def searched(
    index: VectorIndex, wanted: Floats, quota: int, exclude: Rows, where: Where = EVERYTHING
) -> Retrieved:
    """The rows of an index with the highest inner products, without the excluded ones."""
    found = index.search(wanted, min(max(quota + len(exclude), 1), MOST_RESULTS), where)
    rows, scores = found.rows[0], found.scores[0]
    kept = np.flatnonzero((rows >= 0) & ~among(rows, exclude))[:quota]
    return Retrieved(rows.take(kept), scores.take(kept))


def allowed(index: VectorIndex, wanted: Floats, quota: int, query: Query) -> Retrieved:
    """`searched` for what is sold where the visitor is; deeper where most of it may not be shown.

    What is sold out or blocked no index knows. It is left out of `FURTHER` times as many, and no more is
    looked at: a search costs what it finds. So is it where lists near the visitor hold too few for a region.
    """
    where = EVERYTHING
    if query.sold_in and REGION in index.filters:
        where = Where({REGION: frozenset({query.sold_in})}, or_none=frozenset({REGION}))
    found, passes = searched(index, wanted, quota, query.exclude, where), judging(query)
    if passes is None or not (len(found.rows) < quota or crowded(found.rows, passes)):
        return found
    more = searched(index, wanted, FURTHER * quota, query.exclude, where)
    kept = np.flatnonzero(passes(more.rows))[:quota]
    return Retrieved(more.rows[kept], more.scores[kept])


@dataclass(frozen=True, eq=False)
class PlacedVectors:
    """Vectors by row that follow what is written about the items.

    `vectors` float32[size, d], nan where a row has none; `marks` float64[size] are those of the texts that
    they were made from (`text_vectors.text_marks`), nan for none. An item that was taken out keeps its
    vector, which is read for those who chose it, until something is written about it again.
    """

    vectors: Floats
    marks: NDArray[np.float64]

    def write(
        self,
        rows: Rows,
        texts: Sequence[str],
        embed: Callable[[Rows, Sequence[str]], Floats],
        index: VectorIndex | None,
    ) -> None:
        """Give rows the vectors of these texts, in place; the index gets them too.

        A row of which nothing is known has none. Rows that the table does not hold are left out. Requests
        that are under way see a row without a vector, or with its whole vector.
        """
        inside = np.flatnonzero((rows >= 0) & (rows < len(self.vectors)))
        rows, texts = rows[inside], [texts[at] for at in inside.tolist()]
        if not len(rows):
            return
        found = embed(rows, texts)
        said = np.abs(found).sum(axis=1) > 0
        if index is not None:
            index.delete(rows[~said])
            index.upsert(rows[said], found[said])
        self.vectors[rows, 0] = np.nan  # whoever reads looks here whether there is a vector
        self.vectors[rows[said], 1:] = found[said, 1:]
        self.vectors[rows[said], 0] = found[said, 0]
        self.marks[rows] = text_marks(texts)

    def take_out(self, rows: Rows, index: VectorIndex | None) -> None:
        """Let no search find these rows; those that the table does not hold are left out."""
        rows = known(rows, len(self.vectors))
        if index is not None:
            index.delete(rows)
        self.marks[rows] = TAKEN_OUT

    def taken_out(self) -> NDArray[np.bool_]:
        """bool[size]: the rows that no search may find."""
        return np.asarray(self.marks == TAKEN_OUT)


def scatter(rows: Rows, values: NDArray[Any], size: int, missing: float) -> NDArray[Any]:
    """A table of `size` rows with `values` at `rows` (-1 is skipped) and `missing` elsewhere."""
    table = np.full((size, *values.shape[1:]), missing, values.dtype)
    held = (rows >= 0) & (rows < size)
    table[rows[held]] = values[held]
    return table


def look_up(table: NDArray[Any], rows: NDArray[Any], missing: float | str) -> NDArray[Any]:
    """`table[rows]`, with `missing` for rows that the table does not hold."""
    outside = (rows < 0) | (rows >= len(table))
    if not outside.any():
        return np.asarray(table.take(rows, axis=0))  # half the time of indexing
    values = np.full((len(rows), *table.shape[1:]), missing, table.dtype)
    values[~outside] = table[rows[~outside]]
    return values


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], params: object) -> None:
    """Write arrays and the parameters dataclass beside them as one `.npz`; text is stored as fixed-width."""
    values = asdict(params)  # type: ignore[call-overload]
    named = {f"param_{name}": np.asarray(value) for name, value in values.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays, **named)  # type: ignore[arg-type]


def load_arrays(
    path: Path, needed: Sequence[str], *, unread: Collection[str] = ()
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """(arrays, parameters) of a file that `save_arrays` wrote, without those that need not be read.

    BundleError names what cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files if name not in unread}
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(
            f"{path} cannot be read as a model file ({error}); train again or copy it again"
        ) from error
    absent = [name for name in needed if name not in held]
    if absent:
        raise BundleError(
            f"{path} lacks {', '.join(absent)}; it was not written by this version: train again"
        )
    arrays = {name: value for name, value in held.items() if not name.startswith("param_")}
    params = {name[6:]: value.item() for name, value in held.items() if name.startswith("param_")}
    return arrays, params
