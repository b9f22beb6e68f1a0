"""Build the wheel and import every module of the library from it, in an environment that holds only numpy.

    python -m tests.wheel

Proves that the library needs the standard library and numpy alone, and that the wheel lacks nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, narrows
names = [m.name for m in pkgutil.walk_packages(narrows.__path__, "narrows.")]
core = [n for n in names if not n.startswith(("narrows.adapters", "narrows.cli"))]
for name in core:
    importlib.import_module(name)
print(f"{len(core)} modules of the library imported from {narrows.__file__}")
"""


def main() -> None:
    """Exits non-zero, with the failing step's output, when the wheel is not whole."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work), cwd=ROOT)
        (wheel,) = work.glob("*.whl")
        venv.create(work / "empty", with_pip=False)
        python = work / "empty" / "bin" / "python"
        (work / "numpy.txt").write_text(_pinned("numpy"))
        install = ["-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
        _run(sys.executable, *install, "--require-hashes", "-r", str(work / "numpy.txt"))
        _run(sys.executable, *install, "--no-deps", str(wheel))
        print(_run(str(python), "-I", "-W", "error", "-c", IMPORT_ALL, cwd=work).strip())


def _pinned(package: str) -> str:
    """The lock file's entries of one package, hashes included."""
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    entries = re.findall(rf"^{package}==.*?(?=^\S|\Z)", lock, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(re.sub(r"^ *#.*\n?", "", entry, flags=re.MULTILINE) for entry in entries)


def _run(*command: str, cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


if __name__ == "__main__":
    main()
