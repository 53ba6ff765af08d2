"""`oneai accounts`: list them, show one, set what one may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oneai_middleware import Gateway
from oneai_middleware.accounts import NANO, TIERS, Account, Limits

ALICE = Account("alice", tier="pro", models=frozenset({"bot"}), limits=Limits(5, 1000, 1))


@pytest.fixture
def alice(stored: Gateway) -> Account:
    stored.key_store.save_account(ALICE)
    return ALICE


def account(gateway: Gateway, name: str = "alice") -> Account | None:
    """As a process that has just been started finds it."""
    return {found.name: found for found in gateway.key_store.accounts()}.get(name)


# --- list and show ------------------------------------------------------------


def test_accounts_are_listed_with_their_money(oneai: Any, stored: Gateway) -> None:
    ran = oneai("accounts", "list")
    heading = ["ACCOUNT", "TIER", "PAYS", "AVAILABLE", "HELD", "SPENT", "INVOICED"]
    assert (ran.status, ran.out.split(), ran.err) == (0, heading, "")
    stored.key_store.save_account(Account("bob", prepaid=False))
    stored.key_store.save_account(Account("alice", tier="pro"))
    stored.ledger.top_up("alice", 12 * NANO + 1, "a-1")
    assert oneai("accounts", "list").rows == [
        ["alice", "pro", "prepaid", "12.000000001", "0.00", "0.00", "0.00"],
        ["bob", "free", "invoiced", "0.00", "0.00", "0.00", "0.00"],
    ]


def test_an_account_is_shown_in_full(oneai: Any, stored: Gateway, alice: Account) -> None:
    stored.key_store.create("alice")
    stored.ledger.top_up("alice", 25 * NANO, "a-1")
    ran = oneai("accounts", "show", "alice")
    assert (ran.status, ran.err) == (0, "")
    assert dict(line.split(maxsplit=1) for line in ran.out.splitlines()) == {
        "account": "alice",
        "tier": "pro",
        "pays": "prepaid",
        "models": "bot",
        "rpm": "5",
        "tpm": "1000",
        "concurrent": "1",
        "available": "25.00",
        "held": "0.00",
        "spent": "0.00",
        "topped_up": "25.00",
        "invoiced": "0.00",
        "keys": "1",
    }


def test_limits_that_are_not_its_own_are_those_of_its_tier(oneai: Any, stored: Gateway) -> None:
    stored.key_store.save_account(Account("alice"))
    stored.key_store.save_account(Account("bob", tier="enterprise"))
    assert oneai("accounts", "show", "alice").said("tpm") == "200000"
    shown = oneai("accounts", "show", "bob")
    limits = [shown.said(name) for name in ("models", "rpm", "tpm", "concurrent")]
    assert limits == ["all", "unlimited", "unlimited", "unlimited"]


def test_a_tier_that_the_settings_do_not_have_is_said_to_be_unknown(
    oneai: Any, stored: Gateway
) -> None:
    stored.key_store.save_account(Account("alice", tier="gone"))
    shown = oneai("accounts", "show", "alice")
    assert shown.status == 0
    assert shown.said("tier") == "gone (unknown: its calls get 503)"
    assert shown.said("available") == "0.00"


def test_what_a_call_has_cost_shows(oneai: Any, stored: Gateway, ask: Any) -> None:
    secret = oneai("keys", "create", "alice").said("secret")
    oneai("top-up", "alice", "1")
    assert ask(secret, max_tokens=50).status == 200
    spent = stored.ledger.balance("alice").spent
    shown = oneai("accounts", "show", "alice")
    assert spent > 0
    assert shown.said("spent") == f"0.{spent:09}".rstrip("0")
    assert shown.said("available") == f"0.{NANO - spent:09}".rstrip("0")


@pytest.mark.parametrize("name", ["alise", "ALICE", "alice "])
def test_an_account_that_is_not_there_is_named(
    oneai: Any, stored: Gateway, alice: Account, name: str
) -> None:
    ran = oneai("accounts", "show", name)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == f"oneai: no account {name!r}; see `oneai accounts list`\n"


@pytest.mark.parametrize("ledger", ["unlimited", "memory"])
def test_money_in_the_memory_of_other_processes_is_not_shown_as_nothing(
    oneai: Any, stored: Gateway, alice: Account, config: Any, tmp_path: Path, ledger: str
) -> None:
    config(f'key_store = "sqlite:///{tmp_path / "oneai.db"}"\nledger = "{ledger}"')
    assert oneai("accounts", "list").rows == [["alice", "pro", "prepaid", "-", "-", "-", "-"]]
    shown = oneai("accounts", "show", "alice")
    assert shown.said("keys") == "0"
    assert "available" not in shown.out


# --- set ----------------------------------------------------------------------


def test_an_account_is_made_by_setting_it(oneai: Any, stored: Gateway) -> None:
    ran = oneai("accounts", "set", "alice", "--tier", "pro", "--invoiced")
    assert (ran.status, ran.out, ran.err) == (0, "saved    alice (tier pro)\n", "")
    assert account(stored) == Account("alice", "pro", prepaid=False)
    assert oneai("accounts", "set", "bob").status == 0
    assert account(stored, "bob") == Account("bob")


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ([], {}),
        (["--tier", "free"], {"tier": "free"}),
        (["--invoiced"], {"prepaid": False}),
        (["--prepaid"], {"prepaid": True}),
        (["--models", "glm-4,bot"], {"models": frozenset({"glm-4", "bot"})}),
        (["--all-models"], {"models": None}),
        (["--rpm", "7"], {"limits": Limits(7, 1000, 1)}),
        (["--concurrent", "2", "--tpm", "9"], {"limits": Limits(5, 9, 2)}),
        (["--tier-limits"], {"limits": None}),
        (["--tier-limits", "--rpm", "7"], {"limits": TIERS["pro"]._replace(rpm=7)}),
    ],
)
def test_what_is_named_is_changed_and_the_rest_is_left(
    oneai: Any, stored: Gateway, alice: Account, arguments: list[str], changed: dict[str, Any]
) -> None:
    assert oneai("accounts", "set", "alice", *arguments).status == 0
    assert account(stored) == alice._replace(**changed)


def test_one_limit_of_its_own_leaves_those_of_its_tier_in_force(
    oneai: Any, stored: Gateway
) -> None:
    oneai("accounts", "set", "alice", "--tier", "pro", "--rpm", "5")
    changed = account(stored)
    assert changed is not None
    assert changed.limits == TIERS["pro"]._replace(rpm=5)


def test_a_change_holds_for_the_next_call(oneai: Any, stored: Gateway, ask: Any) -> None:
    secret = oneai("keys", "create", "alice").said("secret")
    assert ask(secret).status == 402
    oneai("accounts", "set", "alice", "--invoiced")
    assert ask(secret).status == 200
    oneai("accounts", "set", "alice", "--models", "glm-4")
    assert ask(secret).error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--tier", "proo"], 1, "--tier: unknown tier 'proo'; did you mean 'pro'?"),
        (["--models", "glm4"], 1, "--models: unknown model 'glm4'; did you mean 'glm-4'?"),
        (["--models", ""], 2, "--models: one name or more"),
        (["--models", "bot", "--all-models"], 2, "not allowed with argument"),
        (["--prepaid", "--invoiced"], 2, "not allowed with argument"),
        (["--rpm", "many"], 2, "--rpm: 'many' is no whole number above 0"),
        (["--tpm", "1000000000000"], 2, "is no whole number above 0"),
    ],
)
def test_what_is_refused_is_said_and_nothing_is_changed(
    oneai: Any, stored: Gateway, alice: Account, arguments: list[str], status: int, said: str
) -> None:
    ran = oneai("accounts", "set", "alice", "--invoiced", *arguments)
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert account(stored) == alice


@pytest.mark.parametrize("arguments", [["list"], ["show", "alice"], ["set", "alice"]])
def test_accounts_in_memory_are_reached_by_no_command(
    oneai: Any, config: Any, monkeypatch: Any, arguments: list[str]
) -> None:
    monkeypatch.setenv("ONEAI_CONFIG", config("[accounts.alice]\nbalance = '5'"))
    ran = oneai("accounts", *arguments)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("oneai: key_store: lives in the memory of each process")


@pytest.mark.parametrize("arguments", [[], ["show"], ["set"], ["remove", "alice"]])
def test_a_command_that_is_incomplete_is_misuse(oneai: Any, arguments: list[str]) -> None:
    assert oneai("accounts", *arguments).status == 2
