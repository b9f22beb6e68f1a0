"""Objects of S3 as files, for programs that only know paths.

A job is given local paths in place of its `s3://` arguments: what lies below a URI is downloaded before it
runs, and what the job wrote, changed or removed there is brought back after a success. The job does not know:
the same code reads `s3://` itself in AWS, where Spark can.

The lake lies in one place for all jobs: the metadata of its tables hold absolute paths.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

URI = re.compile(r"s3[an]?://[^\s,]+")
LAKE = "lake"
"""The first part of the keys whose files every job finds under the same path."""


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The bucket and the key, or prefix, of an `s3://` URI."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def keys_below(s3: Any, bucket: str, prefix: str) -> list[str]:
    """The object `prefix` itself and all objects below it taken as a folder, but not its namesakes."""
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/"))
    found = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return [key for key in found if (key == prefix or key.startswith(folder)) and not key.endswith("/")]


def download_folder(s3: Any, uri: str, target: Path) -> int:
    """Put what lies below `uri` into the folder `target`; returns how many objects that was."""
    bucket, prefix = bucket_and_key(uri)
    keys = keys_below(s3, bucket, prefix)
    for key in keys:
        inside = key[len(prefix) :].lstrip("/") or key.rpartition("/")[2]
        download(s3, bucket, key, target / inside)
    return len(keys)


def download(s3: Any, bucket: str, key: str, target: Path) -> None:
    """Put one object into one file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    s3.download_file(bucket, key, str(target))


def upload_folder(s3: Any, folder: Path, uri: str) -> None:
    """Store every file of the folder below `uri`; what lies there under other names stays."""
    bucket, prefix = bucket_and_key(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), bucket, f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}")


def upload_archive(s3: Any, folder: Path, uri: str) -> None:
    """Pack what is in `folder` as a .tar.gz with paths relative to it, and store it at `uri`."""
    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        for entry in sorted(folder.iterdir()):
            packed.add(entry, arcname=entry.name)
    s3.upload_file(str(archive), *bucket_and_key(uri))
    archive.unlink()


@dataclass
class Stage:
    """The local stand-in of every S3 location that one job names: below `root`, the lake's below `kept`."""

    s3: Any
    root: Path
    kept: Path
    _places: dict[str, Path] = field(default_factory=dict)
    _before: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def localise(self, text: str) -> str:
        """The text with each S3 URI in it replaced by a path, which holds what is there now."""
        return URI.sub(lambda match: str(self._bring(match.group())), text)

    def _bring(self, uri: str) -> Path:
        bucket, key = bucket_and_key(uri)
        base = self.kept if key.partition("/")[0] == LAKE else self.root
        local = base / bucket / key.rstrip("/")
        if uri not in self._places:
            self._places[uri] = local
            for found in keys_below(self.s3, bucket, key):
                path = base / bucket / found
                if base == self.root or not path.exists():  # what is kept is what the last job left there
                    download(self.s3, bucket, found, path)
            local.parent.mkdir(parents=True, exist_ok=True)
            self._before.update((path, _stamp(path)) for path in self._files(local))
        return local

    def bring_back(self) -> list[str]:
        """Upload what is new or changed, delete what the job removed; the keys that were written."""
        places = {self.root, *(place for place in self._places.values() if place.is_relative_to(self.kept))}
        now = {path: _stamp(path) for place in places for path in self._files(place)}
        written = [path for path, stamp in now.items() if self._before.get(path) != stamp]
        for path in written:
            self.s3.upload_file(str(path), *self._address(path))
        for path in self._before.keys() - now.keys():
            bucket, key = self._address(path)
            self.s3.delete_object(Bucket=bucket, Key=key)
        return [self._address(path)[1] for path in written]

    def _files(self, below: Path) -> Iterable[Path]:
        hidden = (".crc", "_temporary")  # Hadoop's local checksums and unfinished work are no objects
        for path in [below, *below.rglob("*")]:
            if path.is_file() and path.suffix != hidden[0] and hidden[1] not in path.parts:
                yield path

    def _address(self, path: Path) -> tuple[str, str]:
        base = self.kept if path.is_relative_to(self.kept) else self.root
        bucket, *key = path.relative_to(base).parts
        return bucket, "/".join(key)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def localised(stage: Stage, arguments: Mapping[str, str]) -> dict[str, str]:
    """The arguments of a job with every S3 location in their values made local."""
    return {name: stage.localise(str(value)) for name, value in arguments.items()}
