"""What ``manage.py check`` says about the gateway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings as django_settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections, router
from django.urls import URLResolver, get_resolver
from django.views.debug import SafeExceptionReporterFilter

from ...errors import ConfigurationError
from ...gateway import Gateway
from .conf import SETTING, gateway
from .models import Account
from .use import keys_are_ours, money_is_ours

MIDDLEWARE = "oneai_middleware.integrations.django.middleware.OneAIMiddleware"
API = "oneai_middleware.integrations.django.urls.api"


@register
def check_settings(**_: Any) -> list[CheckMessage]:
    """The ``ONEAI`` setting and where the API is mounted."""
    try:
        ours = gateway()
    except ConfigurationError as error:
        return [Error(str(error), hint=f"Mend it in the {SETTING} setting.", id="oneai.E001")]
    return [
        *_providers(ours),
        *(_memory(ours) if _is_for_many() else ()),
        *(_sqlite() if _is_for_many() else ()),
        *_place(),
        *_passwords(getattr(django_settings, SETTING, {}), SETTING),
        *_asgi(),
    ]


def _providers(ours: Gateway) -> Iterator[CheckMessage]:
    if not ours.providers:
        yield Warning(
            "No provider is configured, so there is no model to call.",
            hint=f"Set {SETTING}['PROVIDERS'], such as "
            "{'deepseek': {'api_key': 'env:DEEPSEEK_API_KEY'}}.",
            id="oneai.W001",
        )


def _is_for_many() -> bool:
    """Whether this is neither development nor a test."""
    # The test runner switches DEBUG off and keeps what would be sent by mail.
    return not django_settings.DEBUG and not hasattr(mail, "outbox")


def _memory(ours: Gateway) -> Iterator[CheckMessage]:
    """Memory is each worker's own: right for development, wrong for several workers."""
    if ours.rate_limiter.one_process and ours.settings.processes is None:
        yield Warning(
            "Rate limits are counted in memory: N worker processes admit N times the limit.",
            hint=f"Set {SETTING}['RATE_LIMITER'] to 'redis://…', or {SETTING}['PROCESSES'] to N, "
            "or run one process with many threads.",
            id="oneai.W002",
        )
    if ours.ledger.one_process:
        several = (
            "each of several worker processes has its own"
            if ours.settings.allow_memory_ledger
            else "with several worker processes prepaid accounts are refused"
        )
        yield Warning(
            f"Balances are kept in memory: they are gone when the process is, and {several}.",
            hint=f"Keep keys and money in a database: set {SETTING}['KEY_STORE'] to 'django'.",
            id="oneai.W003",
        )


def _sqlite() -> Iterator[CheckMessage]:
    """SQLite refuses to write to whoever has read first, if somebody else wrote meanwhile;
    the gateway sees to that, the project's pages do not."""
    alias = router.db_for_write(Account)
    ours = connections[alias].vendor == "sqlite" and (keys_are_ours() or money_is_ours())
    mode = connections.settings[alias].get("OPTIONS", {}).get("transaction_mode")
    if ours and not mode and django.VERSION >= (5, 1):
        yield Warning(
            f"DATABASES[{alias!r}] is SQLite, and calls write to it: 'database is locked' is what "
            "a page gets that reads before it writes in one transaction.",
            hint="Set its OPTIONS: 'transaction_mode': 'IMMEDIATE' and 'init_command': "
            "'PRAGMA journal_mode=WAL'.",
            id="oneai.W009",
        )


def _place() -> Iterator[CheckMessage]:
    names = list(django_settings.MIDDLEWARE)
    included = sorted(_included())
    if MIDDLEWARE not in names and not included:
        yield Error(
            "The app is installed but the API is not mounted, so nothing answers.",
            hint=f"Put {MIDDLEWARE!r} first in MIDDLEWARE.",
            id="oneai.E002",
        )
    elif MIDDLEWARE in names and names[0] != MIDDLEWARE:
        yield Warning(
            f"OneAIMiddleware stands behind {names[0]!r} in MIDDLEWARE: what stands before it may "
            "read the body, compress streams or refuse API clients.",
            hint="Put it first.",
            id="oneai.W004",
        )
    if included and MIDDLEWARE in names:
        yield Warning(
            f"The API is mounted twice: by the middleware, and in the URLs at {included[0]!r}.",
            hint="Remove one of the two.",
            id="oneai.W007",
        )
    elif included and "MOUNT" in getattr(django_settings, SETTING, {}):
        yield Warning(
            f"{SETTING}['MOUNT'] is not used: the API is where the URLs include it, at "
            f"{included[0]!r}.",
            hint="Remove the setting.",
            id="oneai.W008",
        )


def _included() -> Iterator[str]:
    """Where the project's URLs include the API."""
    if getattr(django_settings, "ROOT_URLCONF", None):
        yield from _places(get_resolver().url_patterns, "/")


def _places(patterns: Iterable[Any], before: str) -> Iterator[str]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _places(pattern.url_patterns, before + str(pattern.pattern))
        elif pattern.lookup_str == API:
            yield before


def _passwords(value: Any, where: str) -> Iterator[CheckMessage]:
    """Passwords in URLs whose setting has a name that Django's debug page prints."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not SafeExceptionReporterFilter.hidden_settings.search(str(name)):
                yield from _passwords(item, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _passwords(item, f"{where}[{index}]")
    elif isinstance(value, str) and _has_password(value):
        yield Warning(
            f"{where} holds a URL with a password, which Django's debug page would print.",
            hint="Write 'env:NAME' and put the URL into that environment variable.",
            id="oneai.W005",
        )


def _has_password(text: str) -> bool:
    try:
        return bool(urlsplit(text).password)
    except ValueError:
        return False


def _asgi() -> Iterator[CheckMessage]:
    if getattr(django_settings, "ASGI_APPLICATION", None):
        yield Warning(
            "ASGI_APPLICATION is set; served that way, the API answers one error that says so.",
            hint="Serve the project through wsgi.py, or remove ASGI_APPLICATION.",
            id="oneai.W006",
        )
