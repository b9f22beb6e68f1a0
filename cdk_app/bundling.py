"""What is deployed as code: the Lambda bundle, the training source, the library archive. No Docker, no clock.

A Lambda bundle is our code plus an installed dependency folder for the target platform. That folder is
made once for each lock (`python -m cdk_app.bundling`) and kept in the environment, so that synthesis
afterwards needs no network. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import jsii
from aws_cdk import aws_lambda as lambda_

from cdk_app.config import ROOT, STAGES, Architecture, Stage

PYTHON_VERSION = "3.14"  # of the functions' runtime in blocks.py
LOCKS = tuple(ROOT / "requirements" / name for name in ("lambda.txt", "lambda-libraries.txt"))
TEXT_LOCK = ROOT / "requirements" / "lambda-text.txt"
"""What a function needs besides to run a sentence encoder's ONNX file."""
TRAINING_LOCK, TRAINING_TEXT_LOCK = (
    ROOT / "requirements" / name for name in ("training.txt", "training-text.txt")
)
KEPT = Path(sys.prefix) / "narrows-bundles"
LAMBDA_CODE = ("narrows", "lambdas", "apps")
TRAINING_CODE = ("narrows", "sagemaker_jobs", "apps")
SPARK_CODE = ("narrows", "glue_jobs")
LEFT_OUT = {"__pycache__", "tests", "cli"}
LIGHTGBM, OPENMP = "lib_lightgbm.so", "libgomp.so.1"
AT_MOST_MB = 250


class BundleMissing(RuntimeError):
    """The dependency folder of a bundle is not there and could not be made."""


@jsii.implements(cdk.ILocalBundling)
class LambdaBundle:
    """Copies our code and the dependency folder to where CDK wants the bundle."""

    def __init__(self, stage: Stage, *, text: bool = False) -> None:
        self._stage, self._text = stage, text

    def try_bundle(self, output_dir: str, *_: Any, **__: Any) -> bool:
        target = Path(output_dir)
        if self._stage.bundle_dependencies:
            installed = dependencies(self._stage.architecture, text=self._text)
            shutil.copytree(installed, target, dirs_exist_ok=True)
        for path in code_files(LAMBDA_CODE):
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        return True


def lambda_code(stage: Stage, *, text: bool = False) -> lambda_.Code:
    """The bundle that all functions of a stage share; its hash is that of code, locks and platform.

    With `text` it can run the ONNX file of a sentence encoder.
    """
    kind = stage.architecture if stage.bundle_dependencies else "code only"
    locks = _locks(text) if stage.bundle_dependencies else ()
    options = cdk.BundlingOptions(
        image=cdk.DockerImage.from_registry("never-used"), local=LambdaBundle(stage, text=text)
    )
    digest = fingerprint((*code_files(LAMBDA_CODE), *locks), f"{kind} {PYTHON_VERSION}")
    return lambda_.Code.from_asset(
        str(ROOT / "lambdas"), asset_hash=digest, asset_hash_type=cdk.AssetHashType.CUSTOM, bundling=options
    )


def dependencies(architecture: Architecture, *, text: bool = False) -> Path:
    """The installed dependencies for this platform; made now if this lock has none yet."""
    digest = fingerprint(_locks(text), f"{architecture} {PYTHON_VERSION}")[:16]
    folder = KEPT / f"{architecture}-{digest}"
    if not folder.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as made:
            _install(LOCKS[0], architecture, Path(made) / "bundle")
            if text:
                _install(TEXT_LOCK, architecture, Path(made) / "bundle", "--no-deps")
            _add_libraries(architecture, Path(made))
            (Path(made) / "bundle").rename(folder)
    return folder


def source_archive(*, text: bool = False) -> Path:
    """The training jobs' code as SageMaker takes it: a tar.gz with `requirements.txt` at its top.

    With `text` it can run the ONNX file of a sentence encoder.
    """
    lock = TRAINING_TEXT_LOCK if text else TRAINING_LOCK
    files = [(path.relative_to(ROOT).as_posix(), path) for path in code_files(TRAINING_CODE)]
    return _archive("source", ".tar.gz", [*files, ("requirements.txt", lock)])


def library_archive() -> Path:
    """`narrows`, and what the jobs share, as a zip that Glue puts on their path."""
    files = [(path.relative_to(ROOT).as_posix(), path) for path in code_files(SPARK_CODE)]
    return _archive("narrows", ".zip", files)


def code_files(folders: Iterable[str]) -> tuple[Path, ...]:
    """The files of these folders that are deployed, in one order on every machine."""
    return tuple(sorted(path for folder in folders for path in _walk(ROOT / folder)))


def fingerprint(files: Iterable[Path], *also: str) -> str:
    """A hash of names and contents, whatever the files' times and owners are."""
    digest = hashlib.sha256("\0".join(also).encode())
    for path in files:
        digest.update(f"\0{path.relative_to(ROOT).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _locks(text: bool) -> tuple[Path, ...]:
    return (*LOCKS, TEXT_LOCK) if text else LOCKS


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in LEFT_OUT or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.suffix != ".pyc":
            yield path


def _install(lock: Path, architecture: Architecture, target: Path, *options: str) -> None:
    machine = {"arm64": "aarch64", "x86_64": "x86_64"}[architecture]
    command = [
        str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--no-compile-bytecode",
        "--python", sys.executable, "--python-platform", f"{machine}-manylinux_2_28", "--python-version",
        PYTHON_VERSION, "--only-binary", ":all:", "--require-hashes", "--link-mode", "copy",
        "--target", str(target), *options, "-r", str(lock),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
    if done.returncode:
        raise BundleMissing(
            f"the Lambda bundle for {architecture} is not in {KEPT} and uv could not make it:\n"
            f"{done.stderr.strip()}\n"
            "Run `python -m cdk_app.bundling` once with a network; synthesis then works offline."
        )


def _add_libraries(architecture: Architecture, made: Path) -> None:
    """LightGBM's library without its Python package, and the OpenMP run time that Lambda's image lacks."""
    wheels, lib = made / "wheels", made / "bundle" / "lib"
    _install(LOCKS[1], architecture, wheels, "--no-deps")
    lib.mkdir()
    openmp = next((wheels / "scikit_learn.libs").glob("libgomp-*.so.1*"))
    shutil.copyfile(wheels / "lightgbm" / "lib" / LIGHTGBM, lib / LIGHTGBM)
    shutil.copyfile(openmp, lib / OPENMP)
    for name in ("bin", ".lock"):
        unwanted = made / "bundle" / name
        shutil.rmtree(unwanted) if unwanted.is_dir() else unwanted.unlink(missing_ok=True)


def _archive(name: str, suffix: str, files: Iterable[tuple[str, Path]]) -> Path:
    content = _tar(files) if suffix == ".tar.gz" else _zip(files)
    path = KEPT / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.rename(path)
    return path


def _tar(files: Iterable[tuple[str, Path]]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, 0o644
            archive.addfile(entry, io.BytesIO(path.read_bytes()))
    return gzip.compress(plain.getvalue(), mtime=0)


def _zip(files: Iterable[tuple[str, Path]]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name)  # 1980: a zip entry needs a time, and it must never differ
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return content.getvalue()


def main() -> None:
    """Make the dependency folders, so that synthesis afterwards needs no network."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    used = sorted({stage.architecture for stage in STAGES.values() if stage.bundle_dependencies})
    parser.add_argument("--architecture", choices=["arm64", "x86_64"], help="only this one")
    chosen = parser.parse_args().architecture
    for architecture in [chosen] if chosen else used:
        print(dependencies(architecture))  # noqa: T201  # a command says what it made


if __name__ == "__main__":
    main()
