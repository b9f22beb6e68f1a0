"""What is deployed as code: complete, small enough, for the right platform, and the same bytes every time."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from cdk_app import bundling
from cdk_app.config import STAGES, Architecture

# What Amazon Linux 2023 has: its C library is 2.34, its GCC 11; its package manager stands on zlib.
SYSTEM = {
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1",
    "libgcc_s.so.1", "libstdc++.so.6", "libz.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
}  # fmt: skip
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (11, 0, 0)}
MACHINES = {"arm64": "EM_AARCH64", "x86_64": "EM_X86_64"}


@pytest.fixture(params=["arm64", "x86_64"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Architecture, Path]:
    """The dependency folder of a platform: `make setup` brings arm64's, uv's cache perhaps the other's."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    try:
        return request.param, bundling.dependencies(request.param)
    except bundling.BundleMissing as error:
        pytest.skip(str(error))


def libraries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.so*") if path.is_file())


def test_no_library_is_missing_on_lambda(installed: tuple[Architecture, Path]) -> None:
    """Every shared library that the bundle needs is in it or in Amazon Linux 2023."""
    _, folder = installed
    carried = {path.name for path in libraries(folder)}
    for path in libraries(folder):
        with path.open("rb") as file:
            needed = {
                tag.needed for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
            }
        assert needed <= carried | SYSTEM, path.name


def test_no_library_wants_a_newer_system_than_lambda_has(installed: tuple[Architecture, Path]) -> None:
    """The symbol versions asked of the system's libraries exist there, and the machine is the right one."""
    architecture, folder = installed
    for path in libraries(folder):
        with path.open("rb") as file:
            elf = ELFFile(file)
            assert elf["e_machine"] == MACHINES[architecture], path.name
            versions = elf.get_section_by_name(".gnu.version_r")
            names = [one.name for _, used in versions.iter_versions() for one in used] if versions else []
        for name in names:
            family, _, number = name.partition("_")
            if family in NEWEST and number[:1].isdigit():
                assert tuple(map(int, number.split("."))) <= NEWEST[family], (path.name, name)


def test_lightgbm_is_its_library_alone(installed: tuple[Architecture, Path]) -> None:
    """The library with its OpenMP run time where Lambda's loader looks, and no scipy behind it."""
    _, folder = installed
    assert {path.name for path in (folder / "lib").iterdir()} == {"lib_lightgbm.so", "libgomp.so.1"}
    packages = {path.name for path in folder.iterdir()}
    assert {"numpy", "boto3", "pydantic", "pynamodb", "aws_lambda_powertools"} <= packages
    assert not packages & {"lightgbm", "sklearn", "scipy", "pandas", "pyarrow"}


def test_the_bundle_is_within_lambdas_limit(installed: tuple[Architecture, Path]) -> None:
    """Code and dependencies unpacked stay under 250 MB, with room."""
    _, folder = installed
    code = bundling.code_files(bundling.LAMBDA_CODE)
    size = sum(path.stat().st_size for path in (*folder.rglob("*"), *code) if path.is_file())
    assert size < 200e6 < bundling.AT_MOST_MB * 1e6


def test_a_bundle_holds_code_and_dependencies(installed: tuple[Architecture, Path], tmp_path: Path) -> None:
    """The bundle has the handlers, the library, the apps and the dependencies, and no tests or caches."""
    architecture, _ = installed
    stage = next(one for one in STAGES.values() if one.bundle_dependencies)
    bundle = bundling.LambdaBundle(replace(stage, architecture=architecture))
    assert bundle.try_bundle(str(tmp_path))
    for name in ("lambdas/collect_events/handler.py", "narrows/events.py", "apps/megashop/app.toml", "numpy"):
        assert (tmp_path / name).exists(), name
    assert not list(tmp_path.glob("lambdas/**/__pycache__"))


def test_the_local_stage_bundles_code_only(tmp_path: Path) -> None:
    """Here handlers run on this machine's environment: wheels for another platform would only harm."""
    assert bundling.LambdaBundle(STAGES["local"]).try_bundle(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == set(bundling.LAMBDA_CODE)


def test_archives_are_the_same_bytes_every_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unchanged code gives an unchanged asset, whatever the clock and the files' times say."""
    made = []
    for folder in (tmp_path / "first", tmp_path / "again"):
        monkeypatch.setattr(bundling, "KEPT", folder)
        paths = bundling.source_archive(), bundling.library_archive()
        made.append({path.name: path.read_bytes() for path in paths})
    assert made[0] == made[1]


def test_training_source_is_what_sagemaker_unpacks() -> None:
    """A tar.gz with the library, the jobs, the apps, and at its top the pinned requirements."""
    with tarfile.open(fileobj=io.BytesIO(bundling.source_archive().read_bytes()), mode="r:gz") as archive:
        names = set(archive.getnames())
        pinned = archive.extractfile("requirements.txt")
        assert pinned is not None
        assert b"--hash=sha256:" in pinned.read()
    assert {"narrows/__init__.py", "sagemaker_jobs/__init__.py", "apps/megashop/app.toml"} <= names
    assert not [name for name in names if name.startswith("narrows/cli")]


def test_glue_gets_the_library_as_a_zip() -> None:
    """Glue puts the zip itself on the path, so `narrows` is at its top."""
    with zipfile.ZipFile(bundling.library_archive()) as archive:
        assert "narrows/__init__.py" in archive.namelist()
