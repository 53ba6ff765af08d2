"""A gateway that stands alone: ``gunicorn --threads 16 oneai_middleware.wsgi:application``.

Its settings are the TOML file that ``$ONEAI_CONFIG`` names; outside its mount there
is nothing.
"""

from __future__ import annotations

from werkzeug.exceptions import NotFound

from .gateway import Gateway
from .middleware import OneAIMiddleware
from .settings import Settings, config_file

_gateway = Gateway(Settings.from_file(config_file()))

application = OneAIMiddleware(
    NotFound(f"Nothing is here: the API is below {_gateway.settings.mount}/v1."), _gateway
)
