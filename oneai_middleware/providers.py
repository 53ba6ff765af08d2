"""The ``providers`` setting: who answers, through which backend, how patiently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .backends.base import Backend
from .catalog import presets
from .cooldown import LONGEST
from .errors import ConfigurationError, unknown_name
from .plugins import build_backend
from .protocol.chat import Timeouts

COOLDOWN = 2.0
"""Seconds for which a provider that keeps failing is left alone at first."""


class Provider(NamedTuple):
    """A company and our account there, under the name the settings give it.

    After some failures in a row it is left alone for ``cooldown`` seconds, longer
    with every further one; with 0 never.
    """

    name: str
    backend: Backend
    timeouts: Timeouts
    cooldown: float = COOLDOWN


def read_providers(table: Mapping[str, Any], timeouts: Timeouts) -> dict[str, Provider]:
    """The providers of the settings, each with its backend built.

    ``timeouts`` hold where a provider gives none of its own. The gateway keeps
    ``backend``, ``timeouts`` and ``cooldown`` of a row; the rest are the backend's
    options.

    :raises ConfigurationError: naming the provider, the field and the fix.
    """
    return {name: _read_provider(name, row, timeouts) for name, row in table.items()}


def _read_provider(name: str, row: Any, timeouts: Timeouts) -> Provider:
    where = f"providers[{name!r}]"
    if "/" in name:
        raise ConfigurationError(f"{where}: a provider's name holds no '/'")
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{where}: a table such as {{'api_key': 'env:NAME'}}")
    options = dict(row)
    backend = options.pop("backend", "openai")
    limits = _read_timeouts(f"{where}['timeouts']", options.pop("timeouts", {}), timeouts)
    cooldown = _read_cooldown(where, options.pop("cooldown", COOLDOWN))
    preset = presets().get(name)
    if preset is not None and backend == "openai":
        theirs = "base_url" not in options
        options.setdefault("base_url", preset.base_url)
        options["dialect"] = _over(preset.dialect, options.get("dialect", {}))
        if theirs and preset.key_variable is not None and not options.get("api_key"):
            raise ConfigurationError(
                f"{where}: give an api_key, such as 'env:{preset.key_variable}'"
            )
    return Provider(name, build_backend(name, backend, options), limits, cooldown)


def _over(name: str, dialect: Any) -> Any:
    """``dialect``, which changes the one called ``name`` unless it names another."""
    return {"name": name, **dialect} if isinstance(dialect, Mapping) else dialect


def _read_cooldown(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        raise ConfigurationError(
            f"{where}: cooldown is a number of seconds from 0 (never) to {LONGEST:g}"
        )
    return float(value)


def _read_timeouts(where: str, row: Any, base: Timeouts) -> Timeouts:
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{where}: a table of seconds")
    known = Timeouts._fields
    for name, value in row.items():
        if name not in known:
            raise ConfigurationError(f"{where}: {unknown_name('timeout', name, known)}")
        # Written so that a NaN is refused.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**7:
            raise ConfigurationError(f"{where}: {name} is a number of seconds above 0")
    return base._replace(**row)
