"""A shop on Flask and SQLite that sells an AI API to its own users.

People sign up, make and revoke their own keys, and see their balance and what they have
used; the payment provider tells the shop what they have paid. ``README.md`` says how to
run it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flask import Flask

from oneai_middleware import ConfigurationError
from oneai_middleware.integrations.flask import OneAI
from oneai_middleware.protocol.chat import ChatRequest

from . import account, payments, users

SHORTEST_SECRET = 16


def answer(request: ChatRequest) -> Iterator[str]:
    """The model that the shop sells: any Python."""
    yield "We are open from nine to five. "
    yield f"You asked: {request.text_of_last_user()}"


def create_app() -> Flask:
    """The shop, with the API below /oneai.

    :raises ConfigurationError: a secret is not set.
    """
    app = Flask(__name__)
    app.secret_key = secret("SHOP_SECRET_KEY")
    app.config["PAYMENT_SECRET"] = secret("SHOP_PAYMENT_SECRET")
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config["MAX_CONTENT_LENGTH"] = 2**16
    database = Path(os.environ.get("SHOP_DATABASE", "shop.sqlite3")).absolute()
    app.config["DATABASE"] = database
    app.config["ONEAI_KEY_STORE"] = f"sqlite:///{database}"
    app.config["ONEAI_TOP_UP_URL"] = os.environ.get("SHOP_URL", "http://127.0.0.1:5000") + "/"
    app.config["ONEAI_PROVIDERS"] = {"shop": {"backend": answer}}
    app.config["ONEAI_MODELS"] = {
        "shop-assistant": {"routes": ["shop/answer"], "input": "0.10", "output": "0.20"}
    }
    if "DEEPSEEK_API_KEY" in os.environ:
        app.config["ONEAI_PROVIDERS"]["deepseek"] = {"api_key": "env:DEEPSEEK_API_KEY"}
    OneAI(app)
    users.make_table(database)
    app.register_blueprint(users.pages)
    app.register_blueprint(account.pages)
    app.register_blueprint(payments.webhook)
    return app


def secret(variable: str) -> str:
    """What an environment variable holds, which everything here rests on.

    :raises ConfigurationError: it is not set, or too short to be one. ``flask oneai …``
        says so in one line.
    """
    value = os.environ.get(variable, "")
    if len(value) < SHORTEST_SECRET:
        raise ConfigurationError(
            f"set {variable} to a secret of {SHORTEST_SECRET} characters or more, such as "
            "`openssl rand -hex 32` prints"
        )
    return value
