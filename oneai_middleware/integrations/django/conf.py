"""The gateway of a Django project, made from its ``ONEAI`` setting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.db import connections

from ...errors import ConfigurationError, unknown_name
from ...gateway import Gateway
from ...settings import Settings

SETTING = "ONEAI"

_lock = threading.RLock()
_making = False
_made: Gateway | None = None


def read_settings() -> Settings:
    """The ``ONEAI`` dict, checked; its top names are upper-case.

    :raises ConfigurationError: a name or a value is wrong.
    """
    values = getattr(django_settings, SETTING, {})
    if not isinstance(values, dict):
        raise ConfigurationError(f"{SETTING}: a dict of settings, not {type(values).__name__}")
    known = [name.upper() for name in Settings()]
    for name in values:
        if str(name) not in known and str(name).upper() in known:
            raise ConfigurationError(f"{SETTING}: write {name!r} in upper case")
        if name not in known:
            raise ConfigurationError(f"{SETTING}: {unknown_name('setting', str(name), known)}")
    return Settings.load({name.lower(): value for name, value in values.items()})


def gateway() -> Gateway:
    """The project's gateway, made on first use and anew when a test overrides ``ONEAI``.

    :raises ConfigurationError: a setting is wrong.
    """
    return _made or _make()


def _make() -> Gateway:
    global _made, _making
    with _lock:
        if _made is not None:
            return _made
        if _making:
            raise ConfigurationError(
                f"{SETTING}: a module that it names asks for the gateway while it is being made; "
                "ask for it in a function"
            )
        _making = True
        try:
            _made = Gateway(read_settings(), scope=database_scope)
        finally:
            _making = False
        return _made


@contextlib.contextmanager
def database_scope() -> Iterator[None]:
    """Around code of the project: what it opens to a database is closed after it.

    Django closes connections when a request ends; a stream's thread belongs to no
    request, and an open stream must hold no connection. One that is inside a
    transaction is left alone, and so is one that was open before, unless it is dead
    or has outlived ``CONN_MAX_AGE`` (with Django's default of 0, every one has). A
    function's connection is its own until it ends; one that streams for long after
    its last query closes it itself.
    """
    for connection in _open():
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
    before = {id(connection) for connection in _open()}
    try:
        yield
    finally:
        with contextlib.ExitStack() as closing:
            for connection in _open():
                if id(connection) not in before:
                    closing.callback(connection.close)


def close_connections() -> None:
    """Close this thread's connections to databases, but for those inside a transaction.

    An answer may take minutes, and nothing asks a database meanwhile.
    """
    for connection in _open():
        if not connection.in_atomic_block:
            connection.close()


def _open() -> list[Any]:
    """This thread's connections that are open."""
    return [c for c in connections.all(initialized_only=True) if c.connection is not None]


def _forget(*, setting: str, **_: Any) -> None:
    global _made
    if setting == SETTING:
        with _lock:
            old, _made = _made, None
        if old is not None:
            old.close()


setting_changed.connect(_forget)
