import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.accounts import (
    NANO,
    TIERS,
    Account,
    ApiKey,
    Caller,
    Limits,
    dollars,
    read_accounts,
    read_dollars,
    read_tiers,
)
from oneai_middleware.errors import ConfigurationError
from oneai_middleware.secret import digest, hint, new_secret


def read_one(**row):
    return read_accounts({"alice": row}, TIERS)["alice"]


# --- keys and callers


def test_a_key_is_valid_until_it_expires():
    key = ApiKey("k1", Account("alice"), expires=100.0)
    assert key.is_valid(99.9)
    assert not key.is_valid(100.0)


def test_a_revoked_key_is_never_valid():
    assert not ApiKey("k1", Account("alice"), revoked=True).is_valid(0)


@pytest.mark.parametrize(
    ("accounts", "keys", "may"),
    [
        (None, None, True),
        ({"m"}, None, True),
        (None, {"m"}, True),
        ({"m"}, {"m", "n"}, True),
        ({"n"}, None, False),
        (None, {"n"}, False),
        ({"m"}, {"n"}, False),
        (set(), None, False),
    ],
)
def test_a_model_is_open_unless_the_account_or_the_key_rules_it_out(accounts, keys, may):
    account = Account("alice", models=accounts)
    assert Caller(account, ApiKey("k1", account, models=keys)).may_use("m") is may


def test_a_caller_without_a_key_has_the_models_of_the_account():
    assert Caller(Account("alice")).may_use("m")
    assert not Caller(Account("alice", models=frozenset())).may_use("m")


# --- tiers


def test_the_shipped_tiers_are_those_of_the_api_reference():
    assert read_tiers({}) == {
        "free": Limits(20, 200_000, 2),
        "pro": Limits(200, 2_000_000, 10),
        "enterprise": Limits(None, None, None),
    }


def test_tiers_are_merged_field_by_field():
    tiers = read_tiers({"free": {"rpm": 5}, "pro": {"concurrent": None}, "mine": {"tpm": 9}})
    assert tiers["free"] == Limits(5, 200_000, 2)
    assert tiers["pro"] == Limits(200, 2_000_000, None)
    assert tiers["mine"] == Limits(None, 9, None)
    assert TIERS["free"].rpm == 20


@pytest.mark.parametrize("value", [0, -1, 1.5, "20", True, 10**12])
def test_a_limit_is_a_whole_number_above_zero(value):
    with pytest.raises(ConfigurationError, match=r"tiers\['free'\]: rpm is a whole number"):
        read_tiers({"free": {"rpm": value}})


def test_a_misspelt_limit_is_named_with_what_was_meant():
    with pytest.raises(ConfigurationError, match="did you mean 'concurrent'"):
        read_tiers({"free": {"concurent": 1}})


def test_a_tier_is_a_table():
    with pytest.raises(ConfigurationError, match="a table of settings, not int"):
        read_tiers({"free": 20})


# --- accounts


def test_an_empty_row_is_a_prepaid_free_account_without_money_or_keys():
    declared = read_one()
    assert declared.account == Account("alice", "free", True, None, None)
    assert (declared.balance, dict(declared.keys)) == (0, {})


def test_a_full_row_is_read_whole():
    secret = new_secret()
    declared = read_one(
        tier="pro",
        balance="12.50",
        prepaid=False,
        models=["m"],
        limits={"rpm": 1},
        keys=[secret],
    )
    limits = Limits(1, 2_000_000, 10)  # what is not given is that of the tier
    assert declared.account == Account("alice", "pro", False, frozenset({"m"}), limits)
    assert declared.balance == 12_500_000_000
    assert declared.keys == {digest(secret): hint(secret)}


def test_a_key_may_be_given_as_its_digest_alone():
    hashed = digest(new_secret())
    assert read_one(keys=[f"sha256:{hashed.upper()}"]).keys == {hashed: f"sha256:{hashed[:8]}…"}


def test_no_secret_is_kept():
    secret = new_secret()
    assert secret not in repr(read_one(keys=[secret]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tier": "prp"}, "unknown tier 'prp'; did you mean 'pro'"),
        ({"balnce": "1"}, "did you mean 'balance'"),
        ({"prepaid": "yes"}, "prepaid is True or False"),
        ({"models": "m"}, "models: a list of strings"),
        ({"models": [1]}, "models: a list of strings"),
        ({"keys": "oneai-sk-x"}, "keys: a list of strings"),
        ({"keys": ["oneai-sk-x"]}, "oneai secret"),
        ({"keys": ["sha256:abc"]}, "64 hex digits"),
        ({"limits": {"rpm": 0}}, "limits: rpm is a whole number"),
        ({"balance": 1.5}, "write dollars as a string"),
    ],
)
def test_a_wrong_row_is_refused_by_name(row, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        read_one(**row)
    assert "accounts['alice']" in str(refused.value)


def test_a_malformed_key_is_not_repeated_in_the_error():
    almost = new_secret()[:-1]
    with pytest.raises(ConfigurationError) as refused:
        read_one(keys=[almost])
    assert almost[9:] not in str(refused.value)


def test_a_key_opens_one_account():
    secret = new_secret()
    table = {"alice": {"keys": [secret]}, "bob": {"keys": [f"sha256:{digest(secret)}"]}}
    with pytest.raises(ConfigurationError, match=r"accounts\['bob'\].*accounts\['alice'\]"):
        read_accounts(table, TIERS)


# --- dollars


@given(st.integers(0, 2**63 - 1))
def test_dollars_are_read_exactly(nano):
    assert read_dollars(f"{nano // NANO}.{nano % NANO:09}", "x") == nano


@pytest.mark.parametrize(
    ("value", "nano"),
    [("0", 0), ("5", 5 * NANO), (5, 5 * NANO), (Decimal("0.1"), 10**8), ("1000", 10**12)],
)
def test_dollars_may_be_written_in_several_ways(value, nano):
    assert read_dollars(value, "x") == nano


@pytest.mark.parametrize(
    "value",
    [
        *(1.5, True, None, [], b"1"),
        *("", "a", "NaN", "Infinity", "-Infinity", "-1", "-0.000000001"),
        *("0.0000000001", "1e-10", "9223372036.854775808", "1e999999"),
        "9" * 40,
        "1." + "0" * 40 + "1",
    ],
)
def test_anything_else_is_no_amount(value):
    with pytest.raises(ConfigurationError, match=r"^where: "):
        read_dollars(value, "where")


@pytest.mark.parametrize(
    ("nano", "written"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (10, "0.00000001"),
        (10**7, "0.01"),
        (10**8, "0.10"),
        (NANO, "1.00"),
        (12_500_000_000, "12.50"),
        (12_345_678_901, "12.345678901"),
        (100 * NANO, "100.00"),
        (2**63 - 1, "9223372036.854775807"),
        (-1, "-0.000000001"),
        (-NANO, "-1.00"),
        (-1_500_000_000, "-1.50"),
    ],
)
def test_dollars_are_written_to_the_last_digit_with_two_decimals_at_least(nano, written):
    assert dollars(nano) == written


@given(st.integers(0, 2**63 - 1))
def test_what_is_written_is_read_back(nano):
    assert read_dollars(dollars(nano), "x") == nano


@given(st.integers(-(2**70), 2**70))
def test_every_amount_is_written_without_an_exponent(nano):
    written = dollars(nano)
    assert Decimal(written) * NANO == nano
    assert re.fullmatch(r"-?\d+\.\d{2,9}", written)
