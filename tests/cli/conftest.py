"""Settings files and installed packages, for commands that read them; keys and money."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from oneai_middleware import Gateway, Settings
from oneai_middleware.cli import main
from oneai_middleware.database.engine import Database, database_at
from oneai_middleware.settings import config_file


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


# --- commands on keys and money -----------------------------------------------------


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a printed table, without its heading."""
        return [re.split(" {2,}", line) for line in self.out.splitlines()[1:]]

    def said(self, name: str) -> str:
        """What stands behind ``name`` at the beginning of a line."""
        [found] = re.findall(rf"^{re.escape(name)} +(.+)$", self.out, re.MULTILINE)
        return found


@pytest.fixture
def oneai(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command as a terminal does."""

    def oneai(*arguments: str) -> Ran:
        try:
            status = main(arguments)
        except SystemExit as misused:
            status = misused.code
        return Ran(status, *capsys.readouterr())

    return oneai


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with our tables and nothing in them, to be copied."""
    file = tmp_path_factory.mktemp("new") / "new.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.engine.dispose()
    return file


@pytest.fixture
def stored(
    tmp_path: Path, new_database: Path, config: Callable[[str], str], monkeypatch: Any
) -> Iterator[Gateway]:
    """A gateway on the echo whose keys and money are in a SQLite file: the commands' own."""
    file = tmp_path / "oneai.db"
    shutil.copy(new_database, file)
    path = config(
        f"""
        key_store = "sqlite:///{file}"
        [providers.zhipu]
        backend = "echo"
        [models.bot]
        routes = ["zhipu/bot"]
        input = "1"
        output = "2"
        """
    )
    monkeypatch.setenv("ONEAI_CONFIG", path)
    yield Gateway(Settings.from_file(path))
    database_at(f"sqlite:///{file}").engine.dispose()


@pytest.fixture
def ask(send: Any, stored: Gateway) -> Callable[..., Any]:
    """Make a call with a key, in a process that has just been started: the reply."""

    def ask(secret: str, **fields: Any) -> Any:
        gateway = Gateway(Settings.from_file(config_file()))
        chat = {"model": "bot", "messages": [{"role": "user", "content": "Hi"}], **fields}
        headers = {"Authorization": f"Bearer {secret}"}
        return send(gateway, "POST", "/v1/chat/completions", chat, headers)

    return ask
