"""A Django login as a caller: ``ONEAI = {"AUTHENTICATE": "…django.session:session_account"}``."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.core.exceptions import DisallowedHost
from django.core.handlers.wsgi import WSGIRequest
from django.utils.http import is_same_domain

from ...errors import CrossSiteRequest
from ..cross_site import refuse_cross_site


def session_account(environ: dict[str, Any]) -> str | None:
    """The ``USERNAME_FIELD`` of the user who is logged in, for the account of that name.

    ``None`` for visitors. Reads the session and the user, and does not change them. A
    login pays from *any* account of its name: where people choose their names, give
    their accounts a prefix, as the documentation shows.

    :raises CrossSiteRequest: another site's page sent the request.
    """
    request = WSGIRequest(environ)
    key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    if key is None:
        return None
    stored = import_module(settings.SESSION_ENGINE).SessionStore(key)
    request.session = _Copy(stored.items())  # type: ignore[assignment]
    user = get_user(request)
    if not user.is_authenticated:
        return None
    refuse_cross_site(environ, _origins(request))
    name: str = user.get_username()
    return name


class _Copy(dict[str, Any]):
    """What a session holds. What Django writes to it is dropped.

    When ``SECRET_KEY`` has changed, Django gives a session a new key; without a
    cookie that says so, which an API does not send, its user would be logged out.
    """

    def cycle_key(self) -> None:
        """Keep the session's key."""

    def flush(self) -> None:
        """Keep the session, although it is no login any more."""


def _origins(request: WSGIRequest) -> set[str]:
    """The project's own origin, and the one that asks if the project trusts it."""
    try:
        own = f"{request.scheme}://{request.get_host()}"
    except DisallowedHost:
        raise CrossSiteRequest("This host name is not served here.") from None
    asking = request.META.get("HTTP_ORIGIN", "")
    return {own, asking} if _is_trusted(asking) else {own}


def _is_trusted(origin: str) -> bool:
    try:
        asking = urlsplit(origin)
    except ValueError:
        return False
    return any(
        asking.scheme == trusted.scheme
        and is_same_domain(asking.netloc, trusted.netloc.removeprefix("*"))
        for trusted in map(urlsplit, settings.CSRF_TRUSTED_ORIGINS)
    )
