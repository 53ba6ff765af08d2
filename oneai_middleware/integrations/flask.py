"""Flask: ``OneAI(app)``, configured by ``ONEAI_*`` in the app's own config.

::

    app.config["ONEAI_PROVIDERS"] = {"deepseek": {"api_key": "env:DEEPSEEK_API_KEY"}}
    OneAI(app)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from flask import Flask, Request, current_app
from flask.cli import ScriptInfo

from ..cli import main
from ..errors import ConfigurationError
from ..gateway import Gateway
from ..middleware import OneAIMiddleware
from ..settings import Settings
from .cross_site import refuse_cross_site

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
        # Flask finds the command by its entry point, app.test_cli_runner() only here.
        app.cli.add_command(command)


def session_account(
    environ: dict[str, Any], keys: tuple[str, ...] = ("_user_id", "user_id")
) -> str | None:
    """The id of the user who is logged in, for the account of that name.

    ``app.config["ONEAI_AUTHENTICATE"] = session_account`` makes a login of the app a
    caller. ``keys`` are where a session may hold the user: Flask-Login's place, and
    the one of Flask's own tutorial. ``None`` for visitors. The session alone is
    read: whether that user still exists is not asked.

    :raises CrossSiteRequest: another site's page sent the request.
    """
    request = Request(environ)
    opened = current_app.session_interface.open_session(current_app, request)
    session: Mapping[str, Any] = opened or {}
    name = next((session[key] for key in keys if session.get(key) is not None), None)
    if name is None:
        return None
    # Not of host_url, which decodes an international name; browsers send it encoded.
    refuse_cross_site(environ, {f"{request.scheme}://{request.host}"})
    return str(name)


@click.command(
    "oneai",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    help="Keys, models, plug-ins and checks of the OneAI gateway.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, arguments: tuple[str, ...]) -> None:
    """``flask oneai …``: the ``oneai`` command on the app's own gateway."""

    # The app is loaded inside main, which says in one line what its settings lack.
    def find_gateway() -> Gateway:
        gateway = context.ensure_object(ScriptInfo).load_app().extensions.get("oneai")
        if not isinstance(gateway, Gateway):
            raise ConfigurationError("this app has no gateway: call OneAI(app) or init_app(app)")
        return gateway

    context.exit(main(list(arguments), prog="flask oneai", find_gateway=find_gateway))
