"""LightGBM through its C library: equal to the Python package, from many threads, with errors that help."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from narrows.adapters.lightgbm import LibraryUnavailable, load_scorer, open_library
from narrows.errors import BundleError, InvalidInput

FEATURES = 12


@pytest.fixture(scope="module")
def booster() -> lightgbm.Booster:
    """A LambdaMART over groups of twenty, some values missing."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(2000, FEATURES)).astype(np.float32)
    matrix[generator.random(matrix.shape) < 0.1] = np.nan
    labels = (np.nan_to_num(matrix[:, 0]) + np.nan_to_num(matrix[:, 3]) > 1).astype(int)
    data = lightgbm.Dataset(matrix, label=labels, group=[20] * 100)
    settings = {"objective": "lambdarank", "num_threads": 1, "verbosity": -1, "seed": 1}
    return lightgbm.train(settings, data, num_boost_round=30)


@pytest.fixture(scope="module")
def path(booster: lightgbm.Booster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its text file."""
    file = tmp_path_factory.mktemp("model") / "ranker.txt"
    booster.save_model(file)
    return file


def rows(count: int, seed: int) -> np.ndarray:
    """Vectors with missing values."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(count, FEATURES)).astype(np.float32)
    matrix[generator.random(matrix.shape) < 0.1] = np.nan
    return matrix


@pytest.mark.parametrize("count", [1, 2, 7, 300, 1000])
def test_scores_equal_the_python_package(booster: lightgbm.Booster, path: Path, count: int) -> None:
    """To 1e-6, whatever the number of rows."""
    matrix = rows(count, count)
    assert load_scorer(path).predict(matrix) == pytest.approx(booster.predict(matrix), abs=1e-6)


def test_threads_do_not_disturb_each_other(booster: lightgbm.Booster, path: Path) -> None:
    """Four threads that share one scorer each get their own rows' scores."""
    scorer = load_scorer(path)
    matrices = [rows(200, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(scorer.predict, matrices))
    for matrix, scores in zip(matrices, found, strict=True):
        assert scores == pytest.approx(booster.predict(matrix), abs=1e-6)


def test_columns_of_any_layout_and_no_rows(booster: lightgbm.Booster, path: Path) -> None:
    """Fortran order and float64 are taken as well; no rows give no scores."""
    scorer = load_scorer(path)
    matrix = np.asfortranarray(rows(50, 1)).astype(np.float64)
    assert scorer.predict(matrix) == pytest.approx(booster.predict(rows(50, 1)), abs=1e-6)
    assert scorer.predict(np.empty((0, FEATURES), np.float32)).tolist() == []
    assert scorer.feature_count == FEATURES
    assert scorer.tree_count == 30


def test_a_matrix_of_another_width_is_refused(path: Path) -> None:
    """The library would read past the end; the scorer says which width it needs."""
    with pytest.raises(InvalidInput, match="12 columns"):
        load_scorer(path).predict(np.zeros((3, 11), np.float32))


def test_a_damaged_model_is_refused(path: Path, tmp_path: Path) -> None:
    """A cut file and a file that is no model are named."""
    cut = tmp_path / "cut.txt"
    cut.write_text(path.read_text()[:500])
    for file in (cut, tmp_path / "absent.txt"):
        with pytest.raises(BundleError, match=r"\.txt.*copy the bundle again"):
            load_scorer(file)


def test_a_library_that_cannot_be_loaded_names_the_remedy(tmp_path: Path) -> None:
    """Where libgomp lacks, the message says how to install it."""
    broken = tmp_path / "lib_lightgbm.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(LibraryUnavailable, match=r"libgomp.*install"):
        open_library(broken)


def test_the_python_package_is_not_imported(path: Path) -> None:
    """Loading and scoring import neither lightgbm nor scipy."""
    code = (
        "import sys, pathlib, numpy; from narrows.adapters.lightgbm import load_scorer;"
        f"load_scorer(pathlib.Path({str(path)!r})).predict(numpy.zeros((2, {FEATURES}), 'f4'));"
        "sys.exit(bool({'lightgbm', 'scipy', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
