"""An app's folder as jobs are given it: a folder of this machine, or a .zip of it that Spark reads."""

from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.sql import SparkSession

from narrows.settings import App, load_app

MAIN = "app.toml"


def read_app(spark: SparkSession, uri: str) -> App:
    """The settings of the app at `uri`, checked as everywhere: `apps/<app>` here, its .zip in AWS."""
    if Path(uri).is_dir():
        return load_app(Path(uri))
    found = spark.read.format("binaryFile").load(uri).first()
    if found is None:
        raise FileNotFoundError(f"--app-config {uri} is not there; give the app's folder, or a .zip of it")
    with zipfile.ZipFile(io.BytesIO(found["content"])) as packed, TemporaryDirectory() as scratch:
        name = str(tomllib.loads(packed.read(MAIN).decode())["name"])
        folder = Path(scratch) / name
        packed.extractall(folder)
        return load_app(folder)
