"""Where a command finds the apps and keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import narrows
from narrows.cli.console import CommandFailed
from narrows.settings import App, load_app


@dataclass(frozen=True)
class Places:
    """`home` holds all state of this machine (NARROWS_HOME), `repository` the apps, jobs and stacks."""

    home: Path
    repository: Path

    def app(self, name: str) -> App:
        """The settings of an app by its name."""
        folder = self.repository / "apps" / name
        if not (folder / "app.toml").is_file():
            known = sorted(one.parent.name for one in (self.repository / "apps").glob("*/app.toml"))
            raise CommandFailed(f"no app '{name}' in {folder.parent}; there is {', '.join(known) or 'none'}")
        return load_app(folder)

    def data(self, app: str) -> Path:
        """The app's imported training data directory."""
        return self.home / "apps" / app / "data"

    def models(self, app: str) -> Path:
        """The folder of the app's model bundles, one folder for each version."""
        return self.home / "apps" / app / "models"

    def holds(self, path: object) -> bool:
        """Whether the path is the home, lies in it, or is a folder that it lies in."""
        return isinstance(path, str | Path) and (
            Path(path).is_relative_to(self.home) or self.home.is_relative_to(path)
        )


def find_places(environment: Mapping[str, str]) -> Places:
    """The repository is the one that this code runs from, else the current folder."""
    code = Path(narrows.__file__).resolve().parents[1]
    repository = code if (code / "apps").is_dir() else Path.cwd()
    home = environment.get("NARROWS_HOME")
    return Places(Path(home).expanduser().absolute() if home else repository / ".narrows", repository)
