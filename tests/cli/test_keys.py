"""`oneai keys`: create, list, revoke and rotate, on a database."""

from __future__ import annotations

import logging
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oneai_middleware import Gateway
from oneai_middleware.accounts import Account, ApiKey, Limits
from oneai_middleware.secret import digest, is_well_formed, new_secret


def all_keys(gateway: Gateway) -> list[ApiKey]:
    return list(gateway.key_store.keys())


def only_key(gateway: Gateway) -> ApiKey:
    [key] = all_keys(gateway)
    return key


# --- create -------------------------------------------------------------------


def test_a_key_is_made_with_its_account_and_its_secret_opens_it(
    oneai: Any, stored: Gateway, ask: Any
) -> None:
    ran = oneai("keys", "create", "alice", "--tier", "pro")
    key = only_key(stored)
    secret = ran.said("secret")
    assert is_well_formed(secret)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "account  alice (tier pro)",
        f"id       {key.id}",
        f"secret   {secret}",
        "The secret is not kept anywhere: hand it over now.",
    ]
    assert key.account == Account("alice", "pro")
    assert ask(secret).error["code"] == "insufficient_balance"


def test_a_second_key_says_nothing_of_the_account_it_found(oneai: Any, stored: Gateway) -> None:
    oneai("keys", "create", "alice", "--tier", "pro")
    again = oneai("keys", "create", "alice")
    assert again.status == 0
    assert "account" not in again.out
    assert [key.account.tier for key in all_keys(stored)] == ["pro", "pro"]
    assert oneai("keys", "create", "alice", "--tier", "pro").status == 0


def test_a_new_account_is_of_the_tier_free(oneai: Any, stored: Gateway) -> None:
    assert "account  alice (tier free)\n" in oneai("keys", "create", "alice").out
    assert only_key(stored).account == Account("alice")


def test_what_a_key_may_is_said_on_the_command_line(oneai: Any, stored: Gateway) -> None:
    oneai(
        *("keys", "create", "alice", "--label", "CI, nightly", "--models", "bot, glm-4"),
        *("--budget", "12.000000001", "--period", "month", "--expires", "2999-12-31T12:00:00Z"),
        *("--rpm", "5", "--tpm", "1000", "--concurrent", "1"),
    )
    key = only_key(stored)
    assert (key.label, key.models) == ("CI, nightly", {"bot", "glm-4"})
    assert (key.budget, key.period) == (12_000_000_001, "month")
    assert key.expires == datetime(2999, 12, 31, 12, tzinfo=UTC).timestamp()
    assert key.limits == Limits(rpm=5, tpm=1000, concurrent=1)


def test_a_key_without_options_has_no_rights_of_its_own(oneai: Any, stored: Gateway) -> None:
    oneai("keys", "create", "alice")
    assert only_key(stored) == ApiKey(
        only_key(stored).id, Account("alice"), hint=only_key(stored).hint
    )


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("2999-01-01", datetime(2999, 1, 1, tzinfo=UTC)),
        ("2999-01-01T12:00", datetime(2999, 1, 1, 12, tzinfo=UTC)),
        ("2999-01-01T12:00:00+02:00", datetime(2999, 1, 1, 10, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_time_is_of_utc_where_it_does_not_say(
    oneai: Any, stored: Gateway, written: str, at: datetime
) -> None:
    oneai("keys", "create", "alice", "--expires", written)
    assert only_key(stored).expires == at.timestamp()
    assert oneai("keys", "list").rows[0][6] == f"{at:%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--tier", "pr"], 1, "--tier: unknown tier 'pr'; did you mean 'pro'?"),
        (["--models", "bott"], 1, "--models: unknown model 'bott'; did you mean 'bot'?"),
        (["--models", "bot,x"], 1, "--models: unknown model 'x'; known: bot, glm-4"),
        (["--models", " , "], 2, "--models: one name or more, with commas between them"),
        (["--period", "day"], 1, "--period goes with a --budget"),
        (["--period", "week", "--budget", "1"], 2, "invalid choice: 'week'"),
        (["--budget", "-1"], 2, "--budget: '-1' is negative"),
        (["--budget", "0.0000000001"], 2, "finer than a nano-dollar"),
        (["--budget", "ten"], 2, "--budget: 'ten' is not an amount in dollars"),
        (["--budget", "1,50"], 2, "--budget: '1,50' is not an amount in dollars"),
        (["--budget", "99999999999"], 2, "too large"),
        (["--expires", "tomorrow"], 2, "--expires: 'tomorrow' is no day or time such as 2026-11"),
        (["--expires", "2020-01-01"], 2, "--expires: '2020-01-01' has passed already"),
        (["--expires", "9999-12-31T23:59:59-14:00"], 2, "is no day or time"),
        (["--rpm", "0"], 2, "--rpm: '0' is no whole number above 0"),
        (["--rpm", "1.5"], 2, "is no whole number above 0"),
        (["--tpm", "¹"], 2, "is no whole number above 0"),
        (["--concurrent", "-1"], 2, "is no whole number above 0"),
        (["--label", "a\nb"], 2, "--label: at most 200 printable characters"),
        (["--label", "x" * 201], 2, "--label: at most 200 printable characters"),
        (["--colour", "red"], 2, "unrecognized arguments: --colour red"),
    ],
)
def test_what_is_refused_is_said_and_nothing_is_made(
    oneai: Any, stored: Gateway, arguments: list[str], status: int, said: str
) -> None:
    ran = oneai("keys", "create", "alice", *arguments)
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert list(stored.key_store.accounts()) == []


@pytest.mark.parametrize("name", ["", "x" * 191, "a\0b", "a\udcffb"])
def test_a_name_that_no_database_can_keep_is_refused(
    oneai: Any, stored: Gateway, name: str
) -> None:
    ran = oneai("keys", "create", name)
    assert ran.status == 2
    assert "1 to 190 characters" in ran.err
    assert list(stored.key_store.accounts()) == []


def test_a_tier_that_differs_from_the_accounts_is_no_change_of_tier(
    oneai: Any, stored: Gateway
) -> None:
    oneai("keys", "create", "alice")
    ran = oneai("keys", "create", "alice", "--tier", "pro")
    assert (ran.status, ran.out) == (1, "")
    assert "is of tier 'free' already; change it with `oneai accounts set`" in ran.err
    assert only_key(stored).account.tier == "free"


def test_the_secret_is_printed_and_goes_nowhere_else(
    oneai: Any, stored: Gateway, caplog: Any, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    ran = oneai("keys", "create", "alice")
    secret = ran.said("secret")
    assert ran.err == ""
    assert secret not in caplog.text
    assert secret not in oneai("keys", "list").out
    written = b"".join(file.read_bytes() for file in tmp_path.glob("oneai.db*"))
    assert secret.encode() not in written
    assert digest(secret).encode() in written


# --- list ---------------------------------------------------------------------


def test_keys_are_listed_with_all_that_may_be_shown(oneai: Any, stored: Gateway) -> None:
    assert oneai("keys", "list").rows == []
    store = stored.key_store
    for name in ("alice", "bob"):
        store.save_account(Account(name))
    created = [
        store.create("alice"),
        store.create("alice", label="ci", budget=12_500_000_000, period="day"),
        store.create("bob", budget=1, expires=1_000_000_000.0),
        store.create("bob", expires=1_000_000_000.0, revoked=True),
    ]
    rows = [
        ["alice", "-", "valid", "-", "-"],
        ["alice", "ci", "valid", "12.50 a day", "-"],
        ["bob", "-", "expired", "0.000000001", "2001-09-09 01:46"],
        ["bob", "-", "revoked", "-", "2001-09-09 01:46"],
    ]
    ran = oneai("keys", "list")
    assert ran.out.split("\n")[0].split() == [
        *("ID", "ACCOUNT", "KEY", "LABEL", "STATE", "BUDGET", "EXPIRES", "LAST", "USED")
    ]
    assert ran.rows == [
        [key.id, row[0], f"oneai-sk-…{secret[-4:]}", *row[1:], "-"]
        for (key, secret), row in zip(created, rows, strict=True)
    ]
    assert oneai("keys", "list", "bob").rows == ran.rows[2:]


def test_the_keys_of_nobody_are_a_mistake_and_those_of_a_new_account_none(
    oneai: Any, stored: Gateway
) -> None:
    stored.key_store.save_account(Account("alice"))
    assert oneai("keys", "list", "alice").rows == []
    ran = oneai("keys", "list", "alise")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "oneai: no account 'alise'; see `oneai accounts list`\n"


def test_the_time_of_the_last_call_shows(
    oneai: Any, stored: Gateway, ask: Any, eventually: Any
) -> None:
    secret = oneai("keys", "create", "alice").said("secret")
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    assert ask(secret).status == 402
    shown = eventually(lambda: oneai("keys", "list").rows[0][7].removeprefix("-"))
    at = datetime.strptime(shown, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert before <= at <= datetime.now(UTC)


def test_a_label_that_somebody_else_wrote_cannot_give_orders_to_the_terminal(
    oneai: Any, stored: Gateway
) -> None:
    stored.key_store.save_account(Account("alice"))
    stored.key_store.create("alice", label="\x1b[2Jé\nkey_0  root")
    [row] = oneai("keys", "list").rows
    assert row[3] == r"\x1b[2J\xe9\nkey_0"


def test_an_expiry_beyond_the_calendar_is_listed_all_the_same(oneai: Any, stored: Gateway) -> None:
    stored.key_store.save_account(Account("alice"))
    stored.key_store.create("alice", expires=1_800_000_000_000.0)  # milliseconds, by mistake
    [row] = oneai("keys", "list").rows
    assert row[6] == "9999-12-31 23:59"


# --- revoke -------------------------------------------------------------------


def test_a_revoked_key_is_closed_for_good(oneai: Any, stored: Gateway, ask: Any) -> None:
    """Conformance 19."""
    ran = oneai("keys", "create", "alice")
    assert ask(ran.said("secret")).status == 402
    revoked = oneai("keys", "revoke", ran.said("id"))
    assert (revoked.status, revoked.out) == (0, f"revoked  {ran.said('id')}\n")
    assert ask(ran.said("secret")).status == 401
    assert oneai("keys", "list").rows[0][4] == "revoked"
    assert oneai("keys", "revoke", ran.said("id")) == revoked


@pytest.mark.parametrize("verb", ["revoke", "rotate"])
def test_a_key_that_is_not_there_is_named(oneai: Any, stored: Gateway, verb: str) -> None:
    oneai("keys", "create", "alice")
    ran = oneai("keys", verb, "key_0")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("oneai: no key 'key_0'")
    assert "`oneai keys list`" in ran.err
    assert only_key(stored).is_valid(time.time())


def test_a_secret_is_no_name_and_is_not_repeated(oneai: Any, stored: Gateway) -> None:
    secret = new_secret()
    for arguments in (("create", secret), ("rotate", secret), ("list", secret)):
        ran = oneai("keys", *arguments)
        assert ran.status == 2
        assert "an API key's secret" in ran.err
        assert secret not in ran.err
    assert list(stored.key_store.accounts()) == []


def test_a_leaked_key_is_revoked_by_its_secret(oneai: Any, stored: Gateway, ask: Any) -> None:
    made = oneai("keys", "create", "alice")
    ran = oneai("keys", "revoke", made.said("secret"))
    assert (ran.status, ran.out) == (0, f"revoked  {made.said('id')}\n")
    assert ask(made.said("secret")).status == 401
    ran = oneai("keys", "revoke", new_secret())
    assert (ran.status, ran.err) == (1, "oneai: no key has this secret\n")


# --- rotate -------------------------------------------------------------------


def test_a_rotated_key_gives_its_rights_to_the_new_one_and_stops(
    oneai: Any, stored: Gateway, ask: Any
) -> None:
    old = oneai(
        *("keys", "create", "alice", "--label", "ci", "--models", "bot", "--budget", "1"),
        *("--period", "day", "--rpm", "5", "--expires", "2999-01-01"),
    )
    new = oneai("keys", "rotate", old.said("id"))
    assert new.status == 0
    assert new.out.endswith("The secret is not kept anywhere: hand it over now.\n")
    first, second = (key._asdict() for key in all_keys(stored))
    own = ("id", "hint", "revoked")
    assert [first.pop(name) for name in own] != [second.pop(name) for name in own]
    assert first == second
    assert ask(old.said("secret")).status == 401
    assert ask(new.said("secret")).status == 402


def test_both_keys_work_while_they_overlap(oneai: Any, stored: Gateway, ask: Any) -> None:
    old = oneai("keys", "create", "alice")
    before = time.time()
    new = oneai("keys", "rotate", old.said("id"), "--overlap", "24h")
    keys = {key.id: key for key in all_keys(stored)}
    end = keys[old.said("id")].expires
    assert end is not None
    assert before + 86_400 <= end <= time.time() + 86_400
    assert keys[new.said("id")].expires is None
    assert [ask(ran.said("secret")).status for ran in (old, new)] == [402, 402]


def test_an_overlap_prolongs_nothing(oneai: Any, stored: Gateway) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    old = oneai("keys", "create", "alice", "--expires", soon.isoformat())
    oneai("keys", "rotate", old.said("id"), "--overlap", "30d")
    assert {key.expires for key in all_keys(stored)} == {soon.timestamp()}


def test_a_revoked_key_cannot_be_rotated(oneai: Any, stored: Gateway) -> None:
    id = oneai("keys", "create", "alice").said("id")
    oneai("keys", "revoke", id)
    ran = oneai("keys", "rotate", id)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (f"oneai: no key {id!r}, or it is revoked; `oneai keys list` shows them\n")
    assert only_key(stored).revoked


@pytest.mark.parametrize("overlap", ["soon", "1", "1h30m", "-1h", "1w", "1.5h", "9999999999s"])
def test_an_overlap_is_a_number_and_a_unit(oneai: Any, stored: Gateway, overlap: str) -> None:
    id = oneai("keys", "create", "alice").said("id")
    ran = oneai("keys", "rotate", id, f"--overlap={overlap}")
    assert ran.status == 2
    assert f"--overlap: '{overlap}' is no time such as 90s, 15m, 24h or 30d" in ran.err
    assert only_key(stored).expires is None


# --- where keys cannot be reached ---------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["create", "alice"], ["list"], ["revoke", "key_0"], ["rotate", "key_0"]]
)
def test_keys_in_memory_are_reached_by_no_command_and_it_says_what_to_do(
    oneai: Any, config: Any, monkeypatch: Any, arguments: list[str]
) -> None:
    monkeypatch.setenv("ONEAI_CONFIG", config(""))
    ran = oneai("keys", *arguments)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "oneai: key_store: lives in the memory of each process, where no command reaches it; "
        "name a database, such as key_store = 'sqlite:///oneai.db'\n"
    )


def test_keys_are_reached_although_the_money_is_in_memory(
    oneai: Any, config: Any, stored: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "oneai.db"
    config(f'key_store = "sqlite:///{file}"\nledger = "memory"')
    assert oneai("keys", "create", "alice").status == 0
    assert len(oneai("keys", "list").rows) == 1


def test_a_store_that_cannot_be_written_to_says_so(
    oneai: Any, config: Any, install: Any, monkeypatch: Any
) -> None:
    shop = """
        from oneai_middleware.key_stores.base import KeyStore

        class ShopKeys(KeyStore):
            def find(self, digest):
                return None
    """
    install("shop", "key_stores", "shop = cli_shop:ShopKeys", files={"cli_shop.py": shop})
    monkeypatch.setenv("ONEAI_CONFIG", config('key_store = "shop"\nledger = "unlimited"'))
    ran = oneai("keys", "create", "alice")
    assert ran.status == 1
    assert ran.err == "oneai: ShopKeys cannot be written to\n"


def test_a_file_of_settings_that_is_not_there_is_named(oneai: Any) -> None:
    ran = oneai("keys", "list", "--config", "no-such-file.toml")
    assert ran.status == 1
    assert re.match(r"oneai: no-such-file\.toml: cannot be read as TOML: .*\n\Z", ran.err)


@pytest.mark.parametrize("arguments", [[], ["delete", "key_0"], ["create"], ["revoke"]])
def test_a_command_that_is_incomplete_is_misuse(oneai: Any, arguments: list[str]) -> None:
    ran = oneai("keys", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("usage: oneai keys")
