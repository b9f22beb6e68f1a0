"""Text vectors: near for what is written alike, the same on every machine, and no text is too odd."""

from __future__ import annotations

import numpy as np
import pytest

from narrows.settings import Catalogue
from narrows.text_vectors import MOST_WORDS, TEXT_BYTES, HashedWords, documents, fit_hashed_words

CATALOGUE = Catalogue("item_id", text=("title", "about"), categories="genres", brand="maker")
TITLES = [f"{kind} number {at}" for at in range(20) for kind in ("red shoes leather", "green tea organic")]


def encoder(texts: list[str], **given: int) -> HashedWords:
    """Fitted with a fixed seed."""
    return fit_hashed_words(texts, np.random.default_rng(0), **given)


def test_what_shares_words_is_near() -> None:
    """A new text about shoes is nearer to every pair of shoes than to any tea."""
    found = encoder(TITLES, dimension=8)
    vectors = found.encode(TITLES)
    near = vectors @ found.encode(["leather shoes, brand new"])[0]
    assert near[0::2].min() > near[1::2].max() + 0.5


def test_vectors_have_length_one_or_none() -> None:
    """No text, and words that the catalogue never used, say nothing."""
    found = encoder(TITLES, dimension=8)
    vectors = found.encode(["tea", "", "zzz", "!?"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-6)


def test_directions_are_the_strongest_of_the_table() -> None:
    """The encoder's inner products come near those of the full weighted table, where that has low rank."""
    found = encoder(TITLES, dimension=30)
    weights = np.zeros((len(TITLES), len(found.rarity)))
    whole = fit_hashed_words(TITLES, np.random.default_rng(1), dimension=200)
    for row, vector in enumerate(whole.encode(TITLES)):
        weights[row, : len(vector)] = vector
    ours = found.encode(TITLES)
    assert np.abs(ours @ ours.T - weights @ weights.T).max() < 0.35
    assert np.linalg.norm(whole.directions, axis=0).max() == pytest.approx(1.0, abs=1e-3)


def test_the_same_seed_and_texts_give_the_same_vectors() -> None:
    """Words are hashed by CRC-32, whose check value is 0xCBF43926, not by what differs between processes."""
    one, other = encoder(TITLES), encoder(TITLES)
    assert np.array_equal(one.encode(["red tea"]), other.encode(["red tea"]))
    found = encoder(["123456789"], buckets=1 << 14)
    assert np.flatnonzero(found.directions.any(axis=1)).tolist() == [0xCBF43926 % (1 << 14)]


def test_no_texts_and_one_text_fit() -> None:
    """A catalogue without words gives an encoder that says nothing."""
    assert encoder([]).encode(["red"]).tolist() == [[0.0] * 64]
    assert encoder(["", ""]).encode(["red"]).any() == np.False_
    assert np.linalg.norm(encoder(["red"]).encode(["red"])) == pytest.approx(1.0)


def test_a_document_is_all_that_is_written() -> None:
    """Text columns, categories and brand; what is missing or of another type is no error."""
    table = {
        "item_id": ["a", "b", "c"],
        "title": ["Red shoes", None, float("nan")],
        "about": ["nice", "tea", 7],
        "genres": [["wear", None, "sport"], None, "x|y"],
        "maker": ["acme", "", None],
    }
    assert documents(table, CATALOGUE) == ["Red shoes nice wear sport acme", " tea  ", " 7 x y "]


def test_ten_thousand_tags_are_cut() -> None:
    """An item with too many tags is read as far as the bytes go, and costs no more."""
    tags = [f"tag{at}" for at in range(10_000)]
    (text,) = documents({"item_id": ["a"], "genres": [tags]}, CATALOGUE)
    assert len(text) == TEXT_BYTES
    found, most = encoder([text, "other words"]), "tag0 " * MOST_WORDS
    assert np.array_equal(found.encode([most + text]), found.encode([most]))
