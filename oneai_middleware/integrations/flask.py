"""Flask: ``OneAI(app)``, configured by ``ONEAI_*`` in the app's own config.

::

    app.config["ONEAI_PROVIDERS"] = {"deepseek": {"api_key": "env:DEEPSEEK_API_KEY"}}
    OneAI(app)
"""

from __future__ import annotations

from flask import Flask

from ..errors import ConfigurationError
from ..gateway import Gateway
from ..middleware import OneAIMiddleware
from ..settings import Settings

PREFIX = "ONEAI_"


class OneAI:
    """The Flask extension. It keeps no app; one object may serve several.

    The app's gateway is ``app.extensions["oneai"]``. Functions, stores and hooks of
    the app run inside its application context, on whichever thread they run.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Mount the gateway before ``app``, as its config says.

        ``app.wsgi_app`` is wrapped, so ``flask run`` and ``app.test_client()``
        reach the API like any server.

        :raises ConfigurationError: a setting is wrong, or the app has a gateway.
        """
        if "oneai" in app.extensions:
            raise ConfigurationError("OneAI is mounted in this app already; call init_app once")
        values = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in app.config.items()
            if name.startswith(PREFIX)
        }
        gateway = Gateway(Settings.load(values), scope=app.app_context)
        app.extensions["oneai"] = gateway
        app.wsgi_app = OneAIMiddleware(app.wsgi_app, gateway)  # type: ignore[method-assign]
