"""From a word in the settings to an object.

A part is named in one of four ways: by the name of an entry point (``"memory"``),
by a URL whose scheme is such a name (``"redis://…"``), by ``"module:attribute"``, or
by the object itself. Only what the settings name is imported.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeVar

from .backends.base import Backend
from .errors import ConfigurationError, unknown_name

GROUP_PREFIX = "oneai_middleware."
GROUPS = ("backends", "key_stores", "rate_limiters", "ledgers")


_EXTRAS = {"sqlalchemy": "sql", "alembic": "sql", "django": "django", "redis": "redis"}
"""Modules that come with an extra of ours."""


class _Store(Protocol):
    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Any: ...


S = TypeVar("S", bound=_Store)


def build_store(setting: str, spec: Any, family: type[S], settings: Mapping[str, Any]) -> S:
    """The key store, rate limiter or ledger that ``spec`` names.

    ``setting`` is the option's name: its plural is the entry-point group.

    :raises ConfigurationError: naming the setting and the fix.
    """
    url = spec if isinstance(spec, str) and "://" in spec else None
    found = _resolve(setting, spec, f"{setting}s")
    if isinstance(found, type) and issubclass(found, family):
        found = _call(setting, lambda: found.from_settings(settings, url))
    if not isinstance(found, family):
        raise ConfigurationError(
            f"{setting}: {_shown(spec)} is no {family.__name__}; subclass "
            f"{family.__module__}.{family.__name__}"
        )
    return found


def build_backend(provider: str, spec: Any, options: Mapping[str, Any]) -> Backend:
    """The backend of one provider: a class, an instance or a plain function.

    :raises ConfigurationError: naming the provider and the fix.
    """
    setting = f"providers[{provider!r}]"
    found = _resolve(f"{setting}['backend']", spec, "backends")
    if isinstance(found, type) and issubclass(found, Backend):
        found = _call(setting, lambda: found(**options))
    elif inspect.isroutine(found):
        from .backends.function import FunctionBackend

        function = found
        found = _call(setting, lambda: FunctionBackend(function, **options))
    if not isinstance(found, Backend):
        raise ConfigurationError(
            f"{setting}['backend']: {_shown(spec)} is neither a Backend nor a function"
        )
    return found


def load_callable(setting: str, spec: Any) -> Any:
    """The function that ``spec`` is, or names as ``"module:function"``; None for None.

    :raises ConfigurationError: it cannot be imported or is no function.
    """
    found = _by_path(setting, spec) if isinstance(spec, str) else spec
    if found is not None and not callable(found):
        raise ConfigurationError(f"{setting}: {_shown(spec)} is not a function")
    return found


@functools.cache
def installed(group: str) -> Mapping[str, list[EntryPoint]]:
    """The entry points of a group (``"backends"``, ``"key_stores"``, …) by name, as
    they were found first: looking takes milliseconds."""
    names: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP_PREFIX + group):
        names.setdefault(entry.name, []).append(entry)
    return names


def _resolve(setting: str, spec: Any, group: str) -> Any:
    if not isinstance(spec, str):
        return spec
    name, is_url, _ = spec.partition("://")
    if is_url or ":" not in spec:
        return _by_name(setting, name, group)
    return _by_path(setting, spec)


def _by_name(setting: str, name: str, group: str) -> Any:
    known = installed(group)
    found = known.get(name, [])
    if not found:
        raise ConfigurationError(f"{setting}: {unknown_name('name', name, known)}")
    if len({entry.value for entry in found}) > 1:
        packages = sorted(entry.dist.name if entry.dist else "?" for entry in found)
        raise ConfigurationError(
            f"{setting}: {name!r} is offered by several packages ({', '.join(packages)}); "
            f"write 'module:attribute' instead, such as {found[0].value!r}"
        )
    return _import(setting, found[0].value, found[0].load)


def _by_path(setting: str, path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not (_is_dotted_name(module_name) and _is_dotted_name(attribute)):
        raise ConfigurationError(
            f"{setting}: {module_name!r} and what follows is neither a name, nor "
            "'module:attribute', nor an address; an address has '://'"
        )

    def load() -> Any:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found

    return _import(setting, path, load)


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _import(setting: str, path: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        raise ConfigurationError(
            f"{setting}: {path!r} cannot be imported: {type(error).__name__}: {error}"
            + _remedy(error)
        ) from error


def _remedy(error: Exception) -> str:
    """What to install, where that is one of our extras."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    extra = _EXTRAS.get(missing)
    return f"; pip install 'oneai_middleware[{extra}]'" if extra else ""


def _call(setting: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ConfigurationError as error:
        message = str(error)
        raise ConfigurationError(
            message if message.startswith(setting) else f"{setting}: {message}"
        ) from error
    except TypeError as error:
        raise ConfigurationError(f"{setting}: {error}") from error
    except Exception as error:  # whose words may hold a password
        raise ConfigurationError(
            f"{setting}: making it raised {type(error).__name__}; a part connects when it is "
            "first used, not when it is made"
        ) from error


def _shown(spec: Any) -> str:
    """``spec`` without what may be a password."""
    return repr(spec.partition("://")[0]) if isinstance(spec, str) else type(spec).__name__
