"""What every training job reads: the log with its leave-one-out splits, and the catalogue beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.adapters.tables import read_training_data
from narrows.adapters.text_encoders import text_encoder
from narrows.catalogue import item_columns
from narrows.column_names import CATALOGUE_NAMES, named
from narrows.errors import InvalidInput
from narrows.evaluation.leave_one_out import labels_to_hold
from narrows.interactions import Interactions
from narrows.retrieval import Rows
from narrows.settings import App, Catalogue, SourceQuota, Surface, load_app
from narrows.text_settings import TextSettings
from narrows.text_vectors import TextEncoder, fit_hashed_words
from sagemaker_jobs.container import Container

APPS = Path(__file__).resolve().parents[1] / "apps"
HOLDOUT, REPLAY = "holdout", "replay"
QUOTAS = (
    SourceQuota("als", 200, 0.4),
    SourceQuota("covisitation", 250, 0.4),
    SourceQuota("popular", 50, 0.1),
    SourceQuota("fresh", 20, 0.1),
)
RANK_AT_MOST = 300


@dataclass(frozen=True, eq=False)
class TableItems:
    """The catalogue over the item numbers of a log; read by the ranker's assembly as a snapshot is."""

    columns: Mapping[str, NDArray[Any]]
    vocabularies: Mapping[str, tuple[str, ...]]

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """The words of a category column, by code."""
        return self.vocabularies.get(name, ())

    def take(self, rows: Rows, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """These columns of these rows."""
        return {name: self.columns[name][rows] for name in names}


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """`log` holds everything; `holdout` lacks each user's last event, `replay` the `labels` before it too.

    `texts` is what is written about each item, "" where nothing is; `reading` says what makes vectors
    of them.
    """

    log: Interactions
    holdout: Interactions
    replay: Interactions
    items: TableItems
    labels: int
    left_out: Mapping[str, int]
    texts: Sequence[str] = ()
    reading: TextSettings = field(default_factory=TextSettings)

    @property
    def parts(self) -> dict[str, Interactions]:
        """Subfolder of a model -> the events that it may be fitted on."""
        return {".": self.log, HOLDOUT: self.holdout, REPLAY: self.replay}

    def encoder(self, seed: int) -> TextEncoder:
        """What makes vectors of the texts: the app's own encoder, else one that is fitted on them."""
        configured = text_encoder(self.reading)
        return configured or fit_hashed_words(self.texts, np.random.default_rng(seed))

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The item number of each id, -1 where the log and the catalogue lack it."""
        wanted = np.asarray(ids, str)
        at = np.searchsorted(self.log.item_ids, wanted)
        at = np.minimum(at, max(len(self.log.item_ids) - 1, 0))
        if not len(self.log.item_ids):
            return np.full(len(wanted), -1, np.int32)
        return np.where(self.log.item_ids[at] == wanted, at, -1).astype(np.int32)


def read(container: Container) -> TrainingSet:
    """The training channel, split; InvalidInput where not one event can be learned from."""
    folder = container.channel("training")
    data = read_training_data(folder)
    if not len(data.interactions):
        raise InvalidInput(
            "training", dict(data.left_out), "give events with user, item, time and a positive weight"
        )
    log = data.interactions
    labels = int(container.number("labels_per_user", 0)) or labels_per_user(log)
    app = app_of(container)
    columns, vocabularies, texts = _columns(app, data.items, log)
    return TrainingSet(
        log,
        log.last_out(1)[0],
        log.last_out(1 + labels)[0],
        TableItems(columns, vocabularies),
        labels,
        data.left_out,
        texts,
        app.text_vectors if app else TextSettings(),
    )


def labels_per_user(log: Interactions) -> int:
    """As many as leave the sources of `replay/` most of the events that those of `holdout/` are fitted on."""
    lengths, visitors = np.unique(np.diff(log.per_user()), return_counts=True)
    return labels_to_hold(lengths[lengths > 0], visitors[lengths > 0])


def app_of(container: Container) -> App | None:
    """The settings of the app that the job was started for, where they travel with the code."""
    name = container.text("app")
    folder = Path(container.text("app_config")) if container.text("app_config") else APPS / name
    return load_app(folder) if name and (folder / "app.toml").is_file() else None


def asked_sources(container: Container) -> frozenset[str]:
    """The sources that any surface of the app asks for; those of the default quotas without an app."""
    app = app_of(container)
    quotas = [one for surface in app.surfaces.values() for one in surface.sources] if app else QUOTAS
    return frozenset(quota.name for quota in quotas)


def funnel(container: Container) -> tuple[tuple[SourceQuota, ...], int]:
    """(quotas, candidates ranked at most) of the surface that the ranker is trained for.

    That is the hyperparameter `surface`, else the app's first surface that starts from a visitor's history,
    else defaults.
    """
    app = app_of(container)
    surfaces = dict(app.surfaces) if app else {}
    wanted = container.text("surface")
    from_history = [one for one in surfaces.values() if one.seed == "history"]
    surface: Surface | None = surfaces.get(wanted) or (from_history[0] if from_history else None)
    return (surface.sources, surface.rank_at_most) if surface else (QUOTAS, RANK_AT_MOST)


def _columns(
    app: App | None, table: Mapping[str, Sequence[Any]], log: Interactions
) -> tuple[dict[str, NDArray[Any]], Mapping[str, tuple[str, ...]], list[str]]:
    texts = [""] * log.item_count
    if "item_id" not in table:
        return {}, {}, texts
    catalogue = app.catalogue if app else _guessed(table)
    renamed = {catalogue.id if name == "item_id" else name: values for name, values in table.items()}
    read_columns = item_columns(renamed, catalogue)
    place = np.searchsorted(log.item_ids, np.asarray(read_columns.ids, str))
    written = read_columns.columns.get("text", np.zeros(len(place), "S1"))
    for at, text in zip(place.tolist(), written.tolist(), strict=True):
        texts[at] = text.decode()
    columns = {}
    for name, values in read_columns.columns.items():
        if values.dtype.kind in "fi":
            missing = np.nan if values.dtype.kind == "f" else -1
            columns[name] = np.full((log.item_count, *values.shape[1:]), missing, values.dtype)
            columns[name][place] = values
    return columns, read_columns.vocabularies, texts


def _guessed(table: Mapping[str, Sequence[Any]]) -> Catalogue:
    """The parts that columns of well-known names play."""
    parts = {part: named(CATALOGUE_NAMES[part], list(table)) or "" for part in CATALOGUE_NAMES}
    return Catalogue(
        id="item_id",
        categories=parts["categories"],
        brand=parts["brand"],
        price=parts["price"],
        time=parts["time"],
    )
