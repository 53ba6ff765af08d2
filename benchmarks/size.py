"""What ``pip install`` of the package brings, measured in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .measures import Figures
from .servers import ROOT

INSTALLER = ("pip", "setuptools", "wheel", "_distutils_hack", "distutils-precedence.pth")
"""What a new environment has before anything is installed."""


def size() -> Figures:
    """How many packages it takes, and how many MB they are."""
    with tempfile.TemporaryDirectory() as folder:
        source, wheels, place = (Path(folder, name) for name in ("source", "wheels", "venv"))
        _copy(source)
        _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(wheels), str(source))
        _run(sys.executable, "-m", "venv", str(place))
        (wheel,) = wheels.glob("*.whl")
        _run(str(place / "bin" / "python"), "-m", "pip", "install", "--no-cache-dir", str(wheel))
        (packages,) = place.glob("lib/python*/site-packages")
        found = [each for each in packages.iterdir() if not _is_installer(each)]
        return {
            "packages": sum(each.suffix == ".dist-info" for each in found),
            "mb": sum(_bytes(each) for each in found) / 2**20,
        }


def _copy(source: Path) -> None:
    """The package alone: to build it leaves things lying about."""
    shutil.copytree(ROOT / "oneai_middleware", source / "oneai_middleware")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)


def _run(*command: str) -> None:
    subprocess.run([*command, *(["-q"] if "pip" in command else [])], check=True, cwd=ROOT)


def _is_installer(path: Path) -> bool:
    return path.name.startswith(INSTALLER)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
