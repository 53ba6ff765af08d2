"""A Flask app that offers an AI API to its own users.

Run it with ``flask --app app run`` and call ``http://127.0.0.1:5000/oneai/v1``. The model
``opening-hours`` is a Python function of the app. With ``DEEPSEEK_API_KEY`` in the environment
DeepSeek's models are offered as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from flask import Flask, current_app

from oneai_middleware.integrations.flask import OneAI
from oneai_middleware.protocol.chat import ChatRequest
from oneai_middleware.secret import new_secret


def answer(request: ChatRequest) -> Iterator[str]:
    """A model of our own: any Python, inside the app's context."""
    name = request.caller.account.name if request.caller else "you"
    yield f"Hello {name}, "
    yield f"we are open {current_app.config['OPENING_HOURS']}."


def create_app() -> Flask:
    """The shop, with the API below /oneai."""
    app = Flask(__name__)
    app.config["OPENING_HOURS"] = "from nine to five"
    app.config["ONEAI_PROVIDERS"] = {"shop": {"backend": answer}}
    if "DEEPSEEK_API_KEY" in os.environ:
        app.config["ONEAI_PROVIDERS"]["deepseek"] = {"api_key": "env:DEEPSEEK_API_KEY"}
    app.config["ONEAI_MODELS"] = {
        "opening-hours": {"routes": ["shop/answer"], "input": "0.10", "output": "0.20"}
    }
    secret = os.environ.get("SHOP_API_KEY") or new_secret()
    app.config["ONEAI_ACCOUNTS"] = {"alice": {"tier": "pro", "balance": "5.00", "keys": [secret]}}
    OneAI(app)

    @app.get("/")
    def home() -> str:
        return "The shop's own page."

    if "SHOP_API_KEY" not in os.environ:
        app.logger.warning("alice's API key for this run: %s", secret)
    return app
