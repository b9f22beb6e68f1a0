"""S3: files by key, and whole folders of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from narrows.adapters.aws import translated
from narrows.errors import InvalidInput

_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


class S3Objects:
    """The objects of one bucket."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self.bucket = bucket

    def put(self, key: str, data: bytes) -> None:
        with translated(f"write s3://{self.bucket}/{key}"):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes | None:
        with translated(f"read s3://{self.bucket}/{key}"):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if error.response["Error"]["Code"] in _ABSENT:
                    return None
                raise
            return bytes(answer["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        with translated(f"list s3://{self.bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def download(self, prefix: str, directory: Path) -> list[Path]:
        """Fetch everything below the prefix into the directory, under the same relative names."""
        prefix = prefix.rstrip("/") + "/"
        return [self._fetch(key, directory / name) for key, name in self._below(prefix)]

    def upload(self, directory: Path, prefix: str) -> list[str]:
        """Store every file below the directory under the prefix; returns the keys."""
        keys = []
        for path in sorted(one for one in directory.rglob("*") if one.is_file()):
            key = f"{prefix.rstrip('/')}/{path.relative_to(directory).as_posix()}"
            with translated(f"write s3://{self.bucket}/{key}"):
                self._client.upload_file(str(path), self.bucket, key)
            keys.append(key)
        return keys

    def _below(self, prefix: str) -> Iterator[tuple[str, str]]:
        for key in self.keys(prefix):
            name = key.removeprefix(prefix)
            if name and not name.endswith("/") and ".." not in name.split("/"):
                yield key, name

    def _fetch(self, key: str, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"read s3://{self.bucket}/{key}"):
            self._client.download_file(self.bucket, key, str(path))
        return path


def split_uri(field: str, uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address; `InvalidInput` for anything else."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise InvalidInput(field, uri, "send an address such as s3://bucket/prefix")
    return parts.netloc, parts.path.lstrip("/")
