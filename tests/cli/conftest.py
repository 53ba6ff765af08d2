"""Settings files and installed packages, for commands that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings of their own."""
    monkeypatch.delenv("ONEAI_CONFIG", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """The path of a settings file that holds this."""

    def config(text: str) -> str:
        path = tmp_path / "oneai.toml"
        path.write_text(dedent(text))
        return str(path)

    return config


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that Python knows of, in other processes as well."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def install(packages: Path, look_anew: Any) -> Callable[..., None]:
    """Install a package that offers one part, as pip would leave it behind."""

    def install(
        name: str, group: str, entry: str, *, version: str = "1.0", files: Mapping[str, str] = {}
    ) -> None:
        about = packages / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (about / "entry_points.txt").write_text(f"[oneai_middleware.{group}]\n{entry}\n")
        for file, source in files.items():
            (packages / file).write_text(dedent(source))
        look_anew()

    return install
