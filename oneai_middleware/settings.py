"""The options: each declared once, with its name, default, check and help.

The keyword arguments of ``OneAIMiddleware`` and ``Gateway``, Flask's ``ONEAI_*`` and
the settings file are spellings of these. Mistakes of shape fail here, at
start-up, with the name of the setting and the fix; whether a provider or a store
can be reached is never asked.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .errors import ConfigurationError, unknown_name
from .protocol.chat import Timeouts

CONFIG_VARIABLE = "ONEAI_CONFIG"

Check = Callable[[str, Any], Any]

# Characters that mean themselves in a path, so that the server's PATH_INFO has them too.
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")


# --- checks: a value as given → the value as used, or a ConfigurationError ----


def _mount(name: str, value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")):
        raise ConfigurationError(f'{name}: a path such as "/oneai", or "" for the root')
    value = value.rstrip("/")
    if value.endswith("/v1"):
        raise ConfigurationError(
            f"{name}: {value!r} ends in /v1, which the API adds by itself; write "
            f"{value.removesuffix('/v1')!r}"
        )
    if not _PATH.fullmatch(value) or any(part in (".", "..") for part in value.split("/")):
        raise ConfigurationError(f"{name}: {value!r} is not a plain path")
    return str(value)


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f"{name}: a table by name, not {type(value).__name__}")
    return value


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**7:
        raise ConfigurationError(f"{name}: a number of seconds above 0, not {value!r}")
    return float(value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40:
        raise ConfigurationError(f"{name}: a whole number above 0, not {value!r}")
    return value


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}: True or False, not {value!r}")
    return value


def _url(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("https://", "http://", "/")):
        raise ConfigurationError(f"{name}: an address such as https://example.com/billing")
    return value


def _file(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigurationError(f"{name}: the path of a file, such as '/run/shop/drain'")
    return Path(value)


def _callable(name: str, value: Any) -> Any:
    if not callable(value) and not (isinstance(value, str) and ":" in value):
        raise ConfigurationError(f'{name}: a function, or "module:function"')
    return value


def _part(name: str, value: Any) -> Any:
    if value is None or value == "":
        raise ConfigurationError(f'{name}: a name, a URL, "module:attribute" or an object')
    return value


def _one_of(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise ConfigurationError(f"{name}: one of {', '.join(choices)}; not {value!r}")
        return str(value)

    return check


def _option(default: Any, check: Check, help: str) -> Any:
    metadata = {"check": check, "help": help}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


# --- the options ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings(Mapping[str, Any]):
    """All options, checked and frozen; also a mapping from name to value.

    ``"env:NAME"``, anywhere in a value, is read from the environment.

    :raises ConfigurationError: for a wrong value, naming the setting and the fix.
    """

    mount: str = _option(
        "/oneai",
        _mount,
        "What stands before /v1; everything below it is the gateway's. With an empty one the "
        "gateway claims exactly /v1.",
    )
    providers: Mapping[str, Any] = _option(
        {},
        _table,
        "Who answers: name to {backend, api_key, base_url, timeouts, cooldown, …}. deepseek, "
        "alibaba, moonshot, minimax and zhipu need an api_key only.",
    )
    models: Mapping[str, Any] = _option(
        {},
        _table,
        "Changes to the catalog: id to {routes, input, output, cached_input, context, "
        "max_output, owned_by, defaults}, merged field by field; False removes a model.",
    )
    tiers: Mapping[str, Any] = _option(
        {},
        _table,
        "Name to {rpm, tpm, concurrent, enforce}, merged over free, pro and enterprise.",
    )
    accounts: Mapping[str, Any] = _option(
        {},
        _table,
        "For the memory stores: name to {tier, balance, prepaid, keys, models, limits}.",
    )
    key_store: Any = _option("memory", _part, "Where API keys live.")
    ledger: Any = _option(
        None,
        _optional(_part),
        'Where money lives; by default where the keys do. "unlimited": every account is '
        "invoiced, recorded and never refused.",
    )
    rate_limiter: Any = _option("memory", _part, "Who counts requests, tokens and calls.")
    processes: int | None = _option(
        None,
        _optional(_count),
        "How many worker processes share the limits of a limiter that counts in each alone: each "
        "gives its share. Where callers need the whole limit, count in Redis.",
    )
    on_store_down: str = _option(
        "closed",
        _one_of("closed", "open", "local"),
        "While the store of the limits cannot be asked: refuse calls that have limits, let them "
        "pass without, or count in each process. Without its ledger no call is ever made.",
    )
    authenticate: Any = _option(
        None,
        _optional(_callable),
        "(environ) to an account's name, an Account or None: the host's own identity, asked "
        "when no key is given. One that reads cookies must itself refuse what other sites' pages "
        "send.",
    )
    keep_alive: float = _option(
        10.0, _seconds, "Seconds of silence on a stream before a comment is sent."
    )
    connect_timeout: float = _option(5.0, _seconds, "Seconds to connect to a provider.")
    first_token_timeout: float = _option(
        120.0, _seconds, "Seconds until a stream's first token, over all routes."
    )
    idle_timeout: float = _option(60.0, _seconds, "Seconds a provider may be silent in mid-stream.")
    total_timeout: float = _option(590.0, _seconds, "Seconds a whole call may take.")
    write_timeout: float = _option(
        30.0,
        _seconds,
        "Seconds a caller may leave a stream unread before it counts as left.",
    )
    lease: float = _option(
        30.0, _seconds, "Seconds after which what a killed worker held comes back."
    )
    default_output: int = _option(
        4096, _count, "Tokens of output set aside when the caller gives no max_tokens."
    )
    max_body_bytes: int = _option(20 * 2**20, _count, "The largest request body, in bytes.")
    max_calls: int | None = _option(
        None,
        _optional(_count),
        "Calls at once in this process; above it callers get 503, so that the host's own "
        "pages keep their threads. By default two fewer than the server has threads, where it "
        "says how many.",
    )
    drain_file: Path | None = _option(
        None,
        _optional(_file),
        "While a file of this name exists, new calls get 503 and /health says so; those under "
        "way run on.",
    )
    on_disconnect: str = _option(
        "delivered",
        _one_of("delivered", "free"),
        "What a caller who leaves early pays: the prompt and what was delivered, or nothing, "
        "which makes every answer free that is read to its last word but one.",
    )
    allow_memory_ledger: bool = _option(
        False,
        _flag,
        "Serve prepaid accounts from memory although several worker processes run, each with "
        "balances of its own.",
    )
    top_up_url: str | None = _option(
        None, _optional(_url), "Where callers buy credit; named in the 402 message."
    )
    upgrade_url: str | None = _option(
        None, _optional(_url), "Where callers change tier; named in the 429 message."
    )

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """The settings in ``values``.

        :raises ConfigurationError: for an unknown name or a wrong value.
        """
        known = [option.name for option in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigurationError(unknown_name("setting", name, known))
        return cls(**values)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = from_environment(option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, option.metadata["check"](option.name, value))
        if self.accounts and self.key_store != "memory":
            # Nobody would read the keys in them, and nobody would say so.
            raise ConfigurationError(
                "accounts: only the key store 'memory' reads them; create these accounts in your "
                "own key store and remove them here, or remove key_store"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The settings in a TOML file.

        :raises ConfigurationError: it cannot be read, or what :meth:`load` raises.
        """
        import tomllib  # only those with a file pay for it

        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from error
        return cls.load(values)

    @property
    def timeouts(self) -> Timeouts:
        """The four time limits of a provider."""
        return Timeouts(
            self.connect_timeout, self.first_token_timeout, self.idle_timeout, self.total_timeout
        )

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def __repr__(self) -> str:
        """Names alone: values may be secrets."""
        return f"<Settings mount={self.mount!r} providers={sorted(self.providers)}>"


def config_file() -> str:
    """The path in ``$ONEAI_CONFIG``.

    :raises ConfigurationError: the variable is not set.
    """
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        raise ConfigurationError(
            f"no settings: the environment variable {CONFIG_VARIABLE} must name a TOML file"
        )
    return path


def from_environment(name: str, value: Any) -> Any:
    """``value`` with every ``"env:NAME"`` in it replaced by that variable.

    :raises ConfigurationError: the variable is not set.
    """
    if isinstance(value, str) and value.startswith("env:"):
        variable = value.removeprefix("env:")
        if not os.environ.get(variable):
            raise ConfigurationError(f"{name}: the environment variable {variable} is not set")
        return os.environ[variable]
    if isinstance(value, Mapping):
        return {key: from_environment(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [from_environment(f"{name}[{index}]", item) for index, item in enumerate(value)]
    return value
