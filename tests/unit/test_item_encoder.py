"""Which item network new items are read by, while the live model comes, goes, or cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows.adapters.item_encoder import MOST_KEPT, RETRY_S, KeptEncoders, LiveEncoder
from narrows.adapters.memory import MemoryControlTable
from narrows.control import Pointer, model_pointer
from narrows.errors import BundleError
from narrows.ranking import ModelManifest, write_manifest
from narrows.sources import two_tower
from tests.unit.test_indexing import network


class Bucket:
    """Promoted models, and how often one looked for something."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0

    def keep(self, version: str) -> None:
        made = self.folder / "models" / version
        made.mkdir(parents=True)
        network().save(made / two_tower.FILE)
        write_manifest(made, ModelManifest(version, "megashop", 1.8e9, ("a",), "fingerprint"))

    def get(self, key: str) -> bytes | None:
        self.asked += 1
        path = self.folder / key
        return path.read_bytes() if path.is_file() else None


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    one = Bucket(tmp_path)
    one.keep("m1")
    return one


def test_while_the_live_model_cannot_be_read_the_one_before_reads(bucket: Bucket) -> None:
    """It is what is served then; the damaged one is looked for seldom, and used as soon as it is there."""
    control, now = MemoryControlTable(), [0.0]
    live = LiveEncoder("megashop", control, bucket.get, clock=lambda: now[0])
    assert live.at_hand() is None
    pointer = Pointer("m1", "models/m1", 1.0)
    control.move(model_pointer("megashop"), pointer, expected=None)
    assert live.at_hand().version == "m1"  # type: ignore[union-attr]
    later = replace(pointer, version="m2", prefix="models/m2")
    control.move(model_pointer("megashop"), later, expected="m1")
    with pytest.raises(BundleError):
        live.current()
    assert live.at_hand().version == "m1"  # type: ignore[union-attr]
    asked = bucket.asked
    bucket.keep("m2")
    assert live.at_hand().version == "m1"  # type: ignore[union-attr]
    assert bucket.asked == asked
    now[0] += RETRY_S
    assert live.at_hand().version == "m2"  # type: ignore[union-attr]


def test_each_kept_model_is_read_once(bucket: Bucket) -> None:
    """By its version; the first ones are forgotten, and one that is not there is looked for again."""
    kept = KeptEncoders(bucket.get)
    with pytest.raises(BundleError):
        kept.of("m2")
    for number in range(2, MOST_KEPT + 2):
        bucket.keep(f"m{number}")
    first = kept.of("m1")
    assert first is not None
    numbers = np.asarray([-1, 1, 0, -1], np.int32)
    expected = network().network.embed(numbers, ["red tea"] * 4)
    assert (first.embed(["new", "b", "a", "zz"], ["red tea"] * 4) == expected).all()
    assert [kept.of(f"m{number}").version for number in (1, 2, 2)] == ["m1", "m2", "m2"]  # type: ignore[union-attr]
    asked = bucket.asked
    kept.of("m1")
    assert bucket.asked == asked
    for number in range(3, MOST_KEPT + 2):
        kept.of(f"m{number}")
    asked = bucket.asked
    kept.of("m1")
    assert bucket.asked > asked
