"""The middleware: is this path ours, or the host's?

::

    app = OneAIMiddleware(app, providers={"deepseek": {"api_key": "env:DEEPSEEK_API_KEY"}})

Everything below the mount is answered by the gateway; every other request reaches
the host untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .errors import ConfigurationError
from .gateway import Gateway

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def claim(environ: dict[str, Any], mount: str) -> dict[str, Any] | None:
    """The environ as the gateway is to see it, or ``None`` if the path is the host's.

    At the root only ``/v1`` is claimed: the rest of the URL space is the host's.
    """
    path = environ.get("PATH_INFO", "")
    claimed = mount or "/v1"
    if path != claimed and not path.startswith(claimed + "/"):
        return None
    return {
        **environ,
        "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + mount,
        "PATH_INFO": path[len(mount) :],
    }


class OneAIMiddleware:
    """A WSGI application that puts the API before another one.

    :param app: the host's WSGI application.
    :param gateway: a gateway to use; otherwise one is made of the options, which
        are those of :class:`~oneai_middleware.settings.Settings`.
    :raises ConfigurationError: a setting is wrong.
    """

    def __init__(self, app: WSGIApp, gateway: Gateway | None = None, **options: Any) -> None:
        if gateway is not None and options:
            raise ConfigurationError("give a gateway or options, not both")
        self.app = app
        self.gateway = gateway or Gateway(**options)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        ours = claim(environ, self.gateway.settings.mount)
        if ours is None:
            return self.app(environ, start_response)
        return self.gateway(ours, start_response)
