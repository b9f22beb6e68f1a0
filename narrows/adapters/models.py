"""Models on S3: candidates as SageMaker leaves them, and the folder in which promoted ones are kept."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrows.adapters.s3 import S3Objects, split_uri
from narrows.control import model_prefix
from narrows.errors import BundleError

ARCHIVE = ".tar.gz"
METRICS = "metrics.json"


class S3ModelFolders:
    """Model folders in one bucket, `models/<version>/`; candidates may lie in any."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._kept = S3Objects(client, bucket)

    def fetch(self, uri: str, directory: Path) -> None:
        """Unpack a model.tar.gz, or copy the folder; BundleError when nothing is there."""
        bucket, key = split_uri("candidate", uri)
        objects = S3Objects(self._client, bucket)
        if not key.endswith(ARCHIVE):
            if not objects.download(key, directory):
                raise BundleError(f"there is no model at {uri}")
            return
        data = objects.get(key)
        if data is None:
            raise BundleError(f"there is no model at {uri}")
        unpack(data, directory)

    def keep(self, directory: Path, version: str) -> str:
        prefix = model_prefix(version)
        self._kept.upload(directory, prefix)
        return prefix

    def metrics(self, uri: str) -> Mapping[str, Any]:
        """The evaluation at an address: metrics.json itself, a folder that holds it, or an archive of one."""
        bucket, key = split_uri("metrics", uri)
        objects = S3Objects(self._client, bucket)
        if not key.endswith((".json", ARCHIVE)):
            key = f"{key.rstrip('/')}/{METRICS}"
        data = objects.get(key)
        if data is not None and key.endswith(ARCHIVE):
            data = _member(data, METRICS)
        if data is None:
            raise BundleError(f"there is no evaluation at {uri}")
        content = json.loads(data)
        if not isinstance(content, dict):
            raise BundleError(f"the evaluation at {uri} is not a JSON object")
        return content


def unpack(data: bytes, directory: Path) -> None:
    """Extract a gzipped tar archive; BundleError for damage, or a name that leads out of the directory."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            archive.extractall(directory, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BundleError(f"the archive is damaged: {error}") from error


def _member(data: bytes, name: str) -> bytes | None:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            found = [one for one in archive.getmembers() if Path(one.name).name == name]
            file = archive.extractfile(found[0]) if found else None
            return file.read() if file else None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BundleError(f"the archive is damaged: {error}") from error
