"""Who calls and what they may: plain records, and the tables that declare them.

An *account* pays and is limited; an *API key* opens it; a *caller* is the two
together, as found for one call. A *tier* names limits that many accounts share.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from . import secret as secrets
from .errors import ConfigurationError, unknown_name

NANO = 10**9
"""Nano-dollars in a dollar: all money is a whole number of them."""


Period = Literal["day", "month"]
"""After which a key's budget is whole again."""


LONGEST_NAME = 190
"""Characters of the longest name of an account that every database can look up."""


def is_name(text: str) -> bool:
    """Whether every database can keep ``text`` as it is and look it up."""
    return 0 < len(text) <= LONGEST_NAME and _can_be_kept(text)


def _can_be_kept(text: str) -> bool:
    has_surrogate = any("\ud800" <= character <= "\udfff" for character in text)
    return "\0" not in text and not has_surrogate


def check_name(what: str, text: str) -> None:
    """See that ``text`` can be a name; ``what`` it names.

    :raises ValueError: it cannot.
    """
    if text.startswith(secrets.PREFIX):
        raise ValueError(f"{what}: this is an API key's secret, which no name can be")
    if not is_name(text):
        raise ValueError(f"{what}: 1 to {LONGEST_NAME} characters, without NUL; not {text[:50]!r}")


LONGEST_LABEL = 200
"""Characters of the longest label of a key."""
MOST_MONEY = 2**62
"""Nano-dollars that any sum may come to: so it stays a whole number in every database."""


class Limits(NamedTuple):
    """Requests a minute, tokens a minute, calls at once. ``None`` is unlimited."""

    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None


class Account(NamedTuple):
    """Who pays and is limited.

    ``models`` names the only models it may use (``None``: all). ``limits``, when
    given, replace those of its tier. An account that is not ``prepaid`` is
    invoiced: its calls are recorded and never refused for money.
    """

    name: str
    tier: str = "free"
    prepaid: bool = True
    models: frozenset[str] | None = None
    limits: Limits | None = None


class ApiKey(NamedTuple):
    """The record of a key; the secret itself is not kept anywhere.

    ``budget`` is the most this key may spend, in nano-dollars: in every ``period``
    of UTC, or ever where it has none. ``expires`` and ``last_used`` are Unix times in
    seconds, the latter to the minute. ``limits`` hold beside those of the account.
    """

    id: str
    account: Account
    label: str = ""
    hint: str = ""
    models: frozenset[str] | None = None
    limits: Limits | None = None
    budget: int | None = None
    period: Period | None = None
    expires: float | None = None
    revoked: bool = False
    last_used: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether the key still opens its account at Unix time ``now``."""
        return not self.revoked and (self.expires is None or now < self.expires)


def check_key_fields(fields: Mapping[str, Any]) -> None:
    """See that a key can have ``fields``, so that all stores keep the same, and what they
    keep means something.

    :raises TypeError: a field is none of :class:`ApiKey`'s that can be chosen.
    :raises ValueError: a value is none that a field can have.
    """
    for name, value in fields.items():
        if name not in _KEY_FIELDS:
            raise TypeError(f"no field of a key that can be chosen: {name}")
        if not _KEY_FIELDS[name](value):
            raise ValueError(f"{name} of a key cannot be {str(value)[:100]!r}")


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest and _can_be_kept(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, frozenset | set | list | tuple) and all(
        isinstance(name, str) and is_name(name) for name in value
    )


def _are_limits(value: Any) -> bool:
    return isinstance(value, Limits) and all(
        limit is None or (type(limit) is int and 0 <= limit < 10**12) for limit in value
    )


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 10**13


_KEY_FIELDS: dict[str, Callable[[Any], bool]] = {
    "label": lambda value: _is_text(value, LONGEST_LABEL),
    "hint": lambda value: _is_text(value, 100),
    "models": lambda value: value is None or _are_names(value),
    "limits": lambda value: value is None or _are_limits(value),
    "budget": lambda value: value is None or (type(value) is int and 0 <= value <= MOST_MONEY),
    "period": lambda value: value in (None, "day", "month"),
    "expires": lambda value: value is None or _is_time(value),
    "revoked": lambda value: isinstance(value, bool),
    "last_used": lambda value: value is None or _is_time(value),
}


class Caller(NamedTuple):
    """Account and key of one call; no key where the host vouches for the account."""

    account: Account
    key: ApiKey | None = None

    def may_use(self, model: str) -> bool:
        """Whether neither the account nor the key rules ``model`` out."""
        lists = (self.account.models, self.key.models if self.key else None)
        return all(models is None or model in models for models in lists)


TIERS: Mapping[str, Limits] = {
    "free": Limits(rpm=20, tpm=200_000, concurrent=2),
    "pro": Limits(rpm=200, tpm=2_000_000, concurrent=10),
    "enterprise": Limits(),
}
"""The tiers of the API reference. Enterprise has no numbers until you give some."""


# --- reading the tables of the settings -------------------------------------


class DeclaredAccount(NamedTuple):
    """One row of the ``accounts`` setting: an account, its money and its keys.

    ``keys`` maps the digest of each secret to what may be shown of it.
    """

    account: Account
    balance: int = 0
    keys: Mapping[str, str] = MappingProxyType({})


def read_tiers(table: Mapping[str, Any]) -> dict[str, Limits]:
    """The shipped tiers with those of ``table`` merged over them, field by field."""
    tiers = dict(TIERS)
    for name, row in table.items():
        where = f"tiers[{name!r}]"
        base = tiers.get(name, Limits())
        tiers[name] = _read_limits(row, where, base=base, beside=frozenset({"enforce"}))
    return tiers


def read_unenforced(table: Mapping[str, Any]) -> frozenset[str]:
    """The tiers whose limits are only tried out: their rows say ``enforce = False``."""
    enforced = {name: row.get("enforce", True) for name, row in table.items()}
    for name, value in enforced.items():
        if not isinstance(value, bool):
            raise ConfigurationError(f"tiers[{name!r}]: enforce is True or False, not {value!r}")
    return frozenset(name for name, value in enforced.items() if not value)


def read_accounts(
    table: Mapping[str, Any], tiers: Mapping[str, Limits]
) -> dict[str, DeclaredAccount]:
    """The ``accounts`` setting, checked.

    :raises ConfigurationError: naming the row, the field and the fix.
    """
    accounts: dict[str, DeclaredAccount] = {}
    seen: dict[str, str] = {}
    for name, row in table.items():
        where = f"accounts[{name!r}]"
        declared = _read_account(name, row, where, tiers)
        for digest in declared.keys:
            if digest in seen:
                raise ConfigurationError(
                    f"{where}: a key of this account is also a key of "
                    f"accounts[{seen[digest]!r}]; every key opens one account"
                )
            seen[digest] = name
        accounts[name] = declared
    return accounts


def _read_account(name: str, row: Any, where: str, tiers: Mapping[str, Limits]) -> DeclaredAccount:
    known = {"tier", "balance", "prepaid", "keys", "models", "limits"}
    row = _table(row, where, known)
    tier = row.get("tier", "free")
    if not isinstance(tier, str) or tier not in tiers:
        raise ConfigurationError(f"{where}: {unknown_name('tier', str(tier), dict(tiers))}")
    prepaid = row.get("prepaid", True)
    if not isinstance(prepaid, bool):
        raise ConfigurationError(f"{where}: prepaid is True or False, not {prepaid!r}")
    models = row.get("models")
    if models is not None:
        models = frozenset(_strings(models, f"{where}: models"))
    limits = row.get("limits")
    if limits is not None:
        limits = _read_limits(limits, f"{where}: limits", base=tiers[tier])
    account = Account(name, tier, prepaid, models, limits)
    keys = dict(_read_key(key, where) for key in _strings(row.get("keys", ()), f"{where}: keys"))
    return DeclaredAccount(account, read_dollars(row.get("balance", "0"), where), keys)


def _read_key(key: str, where: str) -> tuple[str, str]:
    if key.startswith(secrets.DIGEST_PREFIX):
        digest = key.removeprefix(secrets.DIGEST_PREFIX).lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ConfigurationError(
                f"{where}: keys holds a 'sha256:' that is not followed by 64 hex digits; "
                "run `oneai secret` for a fresh pair"
            )
        return digest, f"{secrets.DIGEST_PREFIX}{digest[:8]}…"
    if not secrets.is_well_formed(key):
        raise ConfigurationError(
            f"{where}: keys holds something that is not an API key of ours (its form or its "
            "checksum is wrong); run `oneai secret` for a fresh one"
        )
    return secrets.digest(key), secrets.hint(key)


_AMOUNT = re.compile(r"-?([0-9]{1,30}(\.[0-9]{1,30})?|\.[0-9]{1,30})")

_EXACT = decimal.Context(prec=60, traps=[decimal.Inexact, decimal.InvalidOperation])
"""Arithmetic that refuses to round, whatever context the host's thread is in."""


def read_dollars(value: Any, where: str) -> int:
    """Dollars as a decimal string (or an int) in nano-dollars, exactly.

    :raises ConfigurationError: for a float, a malformed or a negative amount, or
        one with more than nine decimals.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | decimal.Decimal):
        raise ConfigurationError(
            f'{where}: {value!r} is not an amount; write dollars as a string, such as "12.50"'
        )
    if isinstance(value, str) and not _AMOUNT.fullmatch(value):
        raise ConfigurationError(f"{where}: {value!r} is not an amount in dollars, such as 12.50")
    try:
        nano = _EXACT.multiply(decimal.Decimal(value), decimal.Decimal(NANO))
        whole = int(nano)
    except (decimal.DecimalException, ValueError, OverflowError):
        raise ConfigurationError(f"{where}: {value!r} is not an amount in dollars") from None
    if whole != nano or whole < 0 or whole >= 2**63:
        raise ConfigurationError(
            f"{where}: {value!r} is negative, too large, or finer than a nano-dollar"
        )
    return whole


def dollars(nano: int) -> str:
    """Nano-dollars as dollars, exactly, with two decimals at least."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{decimals}"


def _read_limits(
    row: Any, where: str, *, base: Limits, beside: frozenset[str] = frozenset()
) -> Limits:
    row = _table(row, where, {"rpm", "tpm", "concurrent", *beside})
    values = {}
    for name in ("rpm", "tpm", "concurrent"):
        value = row.get(name, getattr(base, name))
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**12
        ):
            raise ConfigurationError(
                f"{where}: {name} is a whole number above 0, or None for unlimited; not {value!r}"
            )
        values[name] = value
    return Limits(**values)


def _table(row: Any, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{where}: a table of settings, not {type(row).__name__}")
    for name in row:
        if name not in known:
            raise ConfigurationError(f"{where}: {unknown_name('field', str(name), sorted(known))}")
    return row


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list | tuple | set | frozenset) or not all(
        isinstance(item, str) for item in value
    ):
        raise ConfigurationError(f"{where}: a list of strings")
    return list(value)
