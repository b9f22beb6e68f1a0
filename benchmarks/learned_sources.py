"""How well sources find what came next, on public data sets, by protocols that others have published with.

    python benchmarks/learned_sources.py --movies PATH --sessions PATH [--seeds 0 1 2] [--json FILE]

--movies is a folder in the layout of Amazon Personalize; `cold_users.json` in it names users who take no
part in training. --sessions is a Parquet file of click sessions with a SPLIT of train_tr, train_valid and
test. Each learned source is trained for each seed, in its own time, which is printed; nothing is chosen on
what is asked. What is not there is skipped; how long the networks take to serve is measured in any case.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sagemaker_jobs  # noqa: F401  # before numpy: it sets how many threads numpy takes

# isort: split
import numpy as np
import pyarrow.parquet as pq

from narrows.adapters.importer import ImportOptions, import_files
from narrows.adapters.tables import read_training_data, write_training_data
from narrows.evaluation.leave_one_out import cases, find, first_hundred
from narrows.evaluation.metrics import gain_at, hit_at, mean, reciprocal_rank_at
from narrows.interactions import Interactions, interactions_of
from narrows.networks import session_state, session_weights, two_tower_weights, user_vectors, with_biases
from narrows.retrieval import NO_ROWS, CandidateSource, Query, Retrieved, Rows, fuse, merge
from narrows.settings import load_app
from narrows.sources import load_sources, session, two_tower
from sagemaker_jobs.container import Container
from sagemaker_jobs.train_covisitation.__main__ import train as train_covisitation
from sagemaker_jobs.train_session.__main__ import train as train_session
from sagemaker_jobs.train_two_tower.__main__ import train as train_two_tower
from sagemaker_jobs.training_set import APPS, HOLDOUT, TrainingSet, read

COUNTED = (train_covisitation,)
LEARNED = {"two_tower": train_two_tower, "session": train_session}
COLD_EVENT, COLD_TARGETS, KNOWN = 10, 10, (0, 1, 3, 5, 10)
BLENDED = 200
COLUMNS = ("SESSION_ID", "ITEM_ID", "TIMESTAMP")
Line = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Which learned sources are trained, from what seed, and in how many seconds each, None for their own."""

    learned: tuple[str, ...]
    seed: int
    budget_s: float | None


@dataclass(frozen=True)
class Trained:
    """A folder of trained sources, the data they come from, and the seconds that each job took."""

    container: Container
    data: TrainingSet
    seconds: Mapping[str, float]

    def timing(self, name: str) -> dict[str, float]:
        """How long the job of this source took, where it has one of its own."""
        return {"seconds": self.seconds[name]} if name in self.seconds else {}

    def sources(self, part: str = ".") -> Mapping[str, CandidateSource]:
        """Those fitted on a part, over the item numbers of the data."""
        return load_sources(self.container.model / part, self.data.rows_of, self.data.log.item_count)


def main() -> None:
    """Measure what is there, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--movies", type=Path)
    parser.add_argument("--sessions", type=Path)
    parser.add_argument("--learned", nargs="*", choices=LEARNED, default=list(LEARNED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, help="seconds for each job, instead of its own")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines: list[Line] = []
    for line in speed():
        print(json.dumps(line), flush=True)
    for name, path, measure in (
        ("movies", arguments.movies, movies),
        ("sessions", arguments.sessions, sessions),
    ):
        if path is None or not path.exists():
            print(f"skipped: --{name} {path or ''} is not there")
            continue
        for seed in arguments.seeds:
            for line in measure(path, Plan(tuple(arguments.learned), seed, arguments.budget)):
                print(json.dumps(line), flush=True)
                lines.append(line)
    means = list(summary(lines))
    for line in means:
        print("mean of seeds:", json.dumps(line))
    if arguments.json and lines:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"runs": lines, "means": means}, indent=1) + "\n", "utf-8")


def summary(lines: Sequence[Line]) -> Iterator[Line]:
    """The means over seeds of every protocol and source."""
    for key in dict.fromkeys((one["protocol"], one["source"]) for one in lines):
        chosen = [one for one in lines if (one["protocol"], one["source"]) == key]
        names = [name for name, value in chosen[0].items() if isinstance(value, float)]
        values = {name: round(float(np.mean([one[name] for one in chosen])), 4) for name in names}
        yield {"protocol": key[0], "source": key[1], "seeds": len(chosen), **values}


def speed() -> Iterator[Line]:
    """Milliseconds of one forward pass for one visitor, the median of many, in the default sizes."""
    drawn, towers, transformer = np.random.default_rng(0), two_tower.Params(), session.Params()
    size = {"dimension": towers.dimension, "history": towers.history, "hidden": towers.hidden}
    weights = two_tower_weights(drawn, content=64, **size)
    recent = drawn.normal(size=(towers.history, towers.dimension)).astype(np.float32)
    nobody = np.zeros(towers.dimension, np.float32)
    yield {"network": "user", "ms": median_ms(lambda: user_vectors(weights, recent, nobody, np))}
    blocks = with_biases(session_weights(drawn, **asdict(transformer)), np)  # as it is served
    for length in (5, 50, transformer.window):
        items = drawn.normal(size=(length, transformer.dimension)).astype(np.float32)
        found = median_ms(partial(session_state, blocks, items, np))
        yield {"network": "session", "events": length, "ms": found}


def median_ms(work: Callable[[], object], times: int = 300) -> float:
    """The median of so many calls, after a first one."""
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return round(float(np.median(found)) * 1e3, 4)


def movies(path: Path, plan: Plan) -> Iterator[Line]:
    """Leave-one-out of all users, then cold users by how much is known of them."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        import_files(path, load_app(APPS / "media"), folder / "data", _options(), lambda *_: None)
        yield from leave_one_out(trained(folder / "data", folder / "all", plan), plan.seed)
        cold = path / "cold_users.json"
        if cold.is_file():
            names = [str(one) for one in json.loads(cold.read_text("utf-8"))]
            everything = read_training_data(folder / "data")
            is_cold = np.isin(everything.interactions.user_ids, names)[everything.interactions.users]
            _write(folder / "warm", everything.interactions.keep(~is_cold), everything.items)
            warm = trained(folder / "warm", folder / "warm_models", plan)
            yield from cold_users(warm, everything.interactions.keep(is_cold), plan.seed)


def leave_one_out(models: Trained, seed: int) -> Iterator[Line]:
    """The last event of every user, by the sources fitted on all others."""
    held = cases(models.data.log)
    for name, source in models.sources(HOLDOUT).items():
        ranks = find(held, partial(first_hundred, source)).ranks
        yield {
            "protocol": "leave-one-out",
            "source": name,
            "seed": seed,
            "hit_at_10": mean(hit_at(ranks, 10)),
            "ndcg_at_10": mean(gain_at(ranks, 10)),
            "hit_at_100": mean(hit_at(ranks, 100)),
            **models.timing(name),
        }


def cold_users(models: Trained, cold: Interactions, seed: int) -> Iterator[Line]:
    """Recall@20 of events 10 to 19 after the k events before, for each source and for all of them, fused."""
    sources = models.sources()
    numbers = models.data.rows_of(cold.item_ids.tolist())
    starts = cold.per_user()
    recalls: dict[tuple[int, str], list[float]] = {}
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if end - begin < COLD_EVENT + COLD_TARGETS:
            continue
        items = numbers[cold.items[begin:end]]
        targets = items[COLD_EVENT : COLD_EVENT + COLD_TARGETS]
        for known in KNOWN:
            asked = query(items[COLD_EVENT - known : COLD_EVENT], exclude=items[:COLD_EVENT])
            answers = {name: source.retrieve(asked, BLENDED) for name, source in sources.items()}
            found = {name: answer.rows[:20] for name, answer in answers.items()}
            found["blend"] = blended(answers)
            for name, rows in found.items():
                recalls.setdefault((known, name), []).append(float(np.isin(targets, rows).mean()))
    for (known, name), values in recalls.items():
        protocol = f"cold users, {known} known"
        yield {"protocol": protocol, "source": name, "seed": seed, "recall_at_20": float(np.mean(values))}


def blended(answers: Mapping[str, Retrieved]) -> Rows:
    """The first twenty of all answers by fused ranks, as the pipeline fuses without a ranker."""
    return fuse(merge(list(answers.items())), 20).rows


def sessions(path: Path, plan: Plan) -> Iterator[Line]:
    """Every step of every test session: the next click from those before it."""
    table = pq.read_table(path).to_pydict()
    log = session_log(table)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write(folder / "data", log, {})
        models = trained(folder / "data", folder / "models", plan)
        steps = list(steps_of(table, models.data))
        for name, source in models.sources().items():
            ranks = np.asarray([rank_of(source, history, target) for history, target in steps])
            yield {
                "protocol": "sessions, every step",
                "source": name,
                "seed": plan.seed,
                "hit_at_20": mean(hit_at(ranks, 20)),
                "mrr_at_20": mean(reciprocal_rank_at(ranks, 20)),
                **models.timing(name),
            }


def session_log(table: Mapping[str, Sequence[Any]]) -> Interactions:
    """The training sessions of more than one click."""
    split = np.asarray(table["SPLIT"], str)
    chosen = np.char.startswith(split, "train")
    return _without_single_clicks(*(np.asarray(table[name])[chosen] for name in COLUMNS))


def steps_of(table: Mapping[str, Sequence[Any]], data: TrainingSet) -> Iterator[tuple[Rows, int]]:
    """(clicks so far, the next one), over items of the training part only."""
    chosen = np.asarray(table["SPLIT"], str) == "test"
    log = _without_single_clicks(
        *(np.asarray(table[name])[chosen] for name in COLUMNS),
        known=data.log.item_ids[np.unique(data.log.items)],
    )
    numbers, starts = data.rows_of(log.item_ids.tolist()), log.per_user()
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        items = numbers[log.items[begin:end]]
        for step in range(1, len(items)):
            yield items[:step], int(items[step])


def rank_of(source: CandidateSource, history: Rows, target: int) -> int:
    """Where the source puts the target among twenty, -1 for nowhere; the last click is no candidate."""
    rows = source.retrieve(query(history, exclude=history[-1:]), 20).rows
    at = np.flatnonzero(rows == target)
    return int(at[0]) if len(at) else -1


def query(history: Rows, *, exclude: Rows) -> Query:
    """A request after these items."""
    times, weights = np.arange(len(history), dtype=np.float64), np.ones(len(history), np.float32)
    return Query(history, times, weights, NO_ROWS, float(len(history)), "", exclude=exclude)


def trained(data: Path, model: Path, plan: Plan) -> Trained:
    """Run the counting job and the learned ones, each with its own budget of time."""
    model.mkdir(parents=True)
    given = {"seed": plan.seed} | ({} if plan.budget_s is None else {"budget_s": plan.budget_s})
    container = Container(model, model, model, model, {"training": data}, given)
    seconds = {}
    for job in COUNTED:
        job(container)
    for name in plan.learned:
        began = time.monotonic()
        LEARNED[name](container)
        seconds[name] = round(time.monotonic() - began, 1)
    return Trained(container, read(container), seconds)


def _without_single_clicks(users: Any, items: Any, times: Any, *, known: Any = None) -> Interactions:
    """The clicks on known items, of sessions that have more than one such click."""
    if known is not None:
        kept = np.isin(items.astype(str), known)
        users, items, times = users[kept], items[kept], times[kept]
    _, place, counts = np.unique(users, return_inverse=True, return_counts=True)
    kept = counts[place] > 1
    return interactions_of(users[kept].astype(str), items[kept].astype(str), times[kept])


def _options() -> ImportOptions:
    return ImportOptions({}, (), time.time())


def _write(folder: Path, log: Interactions, items: Mapping[str, Sequence[Any]]) -> None:
    events = {
        "user_id": log.user_ids[log.users].tolist(),
        "item_id": log.item_ids[log.items].tolist(),
        "time": log.times.tolist(),
        "weight": log.weights.tolist(),
    }
    write_training_data(folder, events, items)


if __name__ == "__main__":
    main()
