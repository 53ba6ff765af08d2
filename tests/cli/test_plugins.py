"""`oneai plugins`: which parts are installed, from where, and which are in use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import oneai_middleware
from oneai_middleware.cli import main

NOTES = """
    from oneai_middleware.key_stores.base import KeyStore

    class Notes(KeyStore):
        @classmethod
        def from_settings(cls, settings, url=None):
            return cls()

        def find(self, digest):
            return None
"""


def listed(capsys: Any, *arguments: str) -> list[list[str]]:
    """The rows that the command prints, the last cell present where it is in use."""
    assert main(["plugins", *arguments]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["group", "name", "package", "object"]
    return [re.split(" {2,}", row) for row in rows]


def in_use(rows: list[list[str]]) -> set[tuple[str, str]]:
    return {(row[0], row[1]) for row in rows if row[4:] == ["in use"]}


def test_without_settings_all_is_listed_and_nothing_is_in_use(capsys: Any) -> None:
    rows = listed(capsys)
    assert in_use(rows) == set()
    assert [row[0] for row in rows] == sorted(
        (row[0] for row in rows), key=["backends", "key_stores", "rate_limiters", "ledgers"].index
    )
    echo = next(row for row in rows if row[1] == "echo")
    assert re.fullmatch(rf"oneai.middleware {re.escape(oneai_middleware.__version__)}", echo[2])
    assert echo[3] == "oneai_middleware.backends.echo:EchoBackend"


def test_what_the_settings_name_is_in_use(capsys: Any, config: Any) -> None:
    path = config(
        """
        ledger = "unlimited"
        [providers.zhipu]
        backend = "echo"
        """
    )
    assert in_use(listed(capsys, "--config", path)) == {
        ("backends", "echo"),
        ("key_stores", "memory"),
        ("rate_limiters", "memory"),
        ("ledgers", "unlimited"),
    }


def test_defaults_are_in_use_too_and_money_lives_where_the_keys_do(
    capsys: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEAI_CONFIG", config("[providers.zhipu]\napi_key = 'sk-1'"))
    assert in_use(listed(capsys)) == {
        ("backends", "openai"),
        ("key_stores", "memory"),
        ("rate_limiters", "memory"),
        ("ledgers", "memory"),
    }


def test_a_url_puts_the_part_of_its_scheme_into_use_and_is_not_printed(
    capsys: Any, config: Any, install: Any
) -> None:
    install("notes", "key_stores", "notes = cli_notes:Notes", files={"cli_notes.py": NOTES})
    path = config('key_store = "notes://alice:hunter2@host/x"\nledger = "memory"')
    rows = listed(capsys, "--config", path)
    assert ["key_stores", "notes", "notes 1.0", "cli_notes:Notes", "in use"] in rows
    assert ("key_stores", "memory") not in in_use(rows)
    assert "hunter2" not in str(rows)


def test_an_app_says_what_it_uses(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_plugins_app.py").write_text(
        "from oneai_middleware import Gateway\n"
        "app = Gateway(ledger='unlimited', providers={'x': {'backend': lambda request: 'hi'}})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert in_use(listed(capsys, "--app", "cli_plugins_app")) == {
        ("key_stores", "memory"),
        ("rate_limiters", "memory"),
        ("ledgers", "unlimited"),
    }


def test_two_packages_with_one_name_are_both_shown(capsys: Any, install: Any) -> None:
    install("first", "ledgers", "gold = first_gold:Gold", version="1.2")
    install("second", "ledgers", "gold = second_gold:Gold", version="0.3b1")
    rows = [row for row in listed(capsys) if row[1] == "gold"]
    assert sorted(rows) == [
        ["ledgers", "gold", "first 1.2", "first_gold:Gold"],
        ["ledgers", "gold", "second 0.3b1", "second_gold:Gold"],
    ]


def test_settings_that_use_a_doubled_name_are_listed_before_they_are_refused(
    capsys: Any, config: Any, install: Any
) -> None:
    install("first", "ledgers", "gold = first_gold:Gold")
    install("second", "ledgers", "gold = second_gold:Gold")
    assert main(["plugins", "--config", config('ledger = "gold"')]) == 1
    output = capsys.readouterr()
    assert "first 1.0" in output.out
    assert "second 1.0" in output.out
    assert output.err.startswith("oneai: ledger: 'gold' is offered by several packages (first, se")
    assert output.err.count("\n") == 1


RUN = """
import sys
from oneai_middleware import Gateway
from oneai_middleware.cli import main

sys.argv[1:] and Gateway(providers={"zhipu": {"backend": "echo"}})
sys.argv[1:] or main(["plugins"])
assert "cli_broken" not in sys.modules
"""


@pytest.mark.parametrize("arguments", [[], ["a gateway"]])
def test_a_broken_plugin_that_nobody_names_is_imported_by_nobody(
    install: Any, arguments: list[str]
) -> None:
    install(
        "broken", "backends", "broken = cli_broken:B", files={"cli_broken.py": "raise SystemExit"}
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert ("broken 1.0" in done.stdout) is not bool(arguments)
