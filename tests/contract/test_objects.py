"""What every store of files does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from narrows.adapters.memory import MemoryObjects
from narrows.adapters.s3 import S3Objects, split_uri
from narrows.collecting import ObjectStore
from narrows.errors import InvalidInput, StoreUnavailable
from tests.contract.tables import create_bucket
from tests.servers import AWS, on


class ObjectStoreContract:
    """Subscribed to by every adapter."""

    def test_an_absent_file_is_none(self, store: ObjectStore) -> None:
        """Absent is not empty."""
        assert store.get("a/b") is None
        store.put("a/b", b"")
        assert store.get("a/b") == b""

    def test_a_second_write_replaces_the_first(self, store: ObjectStore) -> None:
        """Under one key there is one file."""
        store.put("a/b", b"one")
        store.put("a/b", b"two")
        assert store.get("a/b") == b"two"

    def test_keys_are_listed_by_prefix_in_order(self, store: ObjectStore) -> None:
        """1,100 keys, more than a page of S3 holds."""
        for number in range(1_100):
            store.put(f"a/{number:04d}", b"x")
        store.put("b/0", b"x")
        assert store.keys("a/") == [f"a/{number:04d}" for number in range(1_100)]
        assert store.keys("c/") == []


class TestMemoryObjects(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryObjects()


class TestS3Objects(ObjectStoreContract):
    @pytest.fixture(params=AWS)
    def store(self, request: pytest.FixtureRequest) -> ObjectStore:
        client = on(request).client("s3")
        return S3Objects(client, create_bucket(client))


@pytest.fixture(params=AWS)
def objects(request: pytest.FixtureRequest) -> S3Objects:
    client = on(request).client("s3")
    return S3Objects(client, create_bucket(client))


def test_a_folder_goes_up_and_comes_down(objects: S3Objects, tmp_path: Path) -> None:
    """Every file has the same name and content at the other end, and neighbours stay away."""
    (tmp_path / "up" / "inner").mkdir(parents=True)
    (tmp_path / "up" / "manifest.json").write_bytes(b"{}")
    (tmp_path / "up" / "inner" / "als.npz").write_bytes(bytes(range(256)))
    keys = objects.upload(tmp_path / "up", "models/7")
    objects.put("models/70/other", b"x")
    paths = objects.download("models/7", tmp_path / "down")
    assert keys == ["models/7/inner/als.npz", "models/7/manifest.json"]
    assert sorted(path.relative_to(tmp_path / "down").as_posix() for path in paths) == [
        "inner/als.npz",
        "manifest.json",
    ]
    assert (tmp_path / "down" / "inner" / "als.npz").read_bytes() == bytes(range(256))


def test_a_missing_bucket_is_unavailable(moto: Any, tmp_path: Path) -> None:
    """It is not an absent file."""
    objects = S3Objects(moto.client("s3"), "no-such-bucket")
    with pytest.raises(StoreUnavailable):
        objects.get("a")
    with pytest.raises(StoreUnavailable):
        objects.download("a", tmp_path)


def test_an_address_is_split_or_refused() -> None:
    """Only s3:// addresses name a bucket and a key."""
    assert split_uri("candidate", "s3://bucket/a/b.tar.gz") == ("bucket", "a/b.tar.gz")
    with pytest.raises(InvalidInput):
        split_uri("candidate", "/tmp/a")
