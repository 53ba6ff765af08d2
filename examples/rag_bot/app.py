"""A Flask app whose model answers from the documents of whoever asks.

Run it with ``flask --app app run`` and ask the model ``handbook`` on
``http://127.0.0.1:5000/oneai/v1``: alice's key finds alice's documents, bob's key bob's.
Retrieval is a count of common words here; put your own search in its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from flask import Flask, current_app

from oneai_middleware.integrations.flask import OneAI
from oneai_middleware.protocol.chat import ChatRequest, Item
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.secret import new_secret

DOCUMENTS = {
    "alice": [
        "Holidays: thirty days a year, to be taken before March.",
        "Travel: trains are booked by the front desk.",
    ],
    "bob": ["Holidays: twenty-five days a year, and every second Friday."],
}


def words(text: str) -> set[str]:
    """The words of ``text`` that say what it is about."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def best(question: str, documents: list[str]) -> str | None:
    """The document that has most words in common with the question, if any has one."""
    found = max(documents, key=lambda each: len(words(each) & words(question)), default="")
    return found if words(found) & words(question) else None


def handbook(request: ChatRequest) -> Iterator[Item]:
    """The model: the caller's own document about what they ask, and what it took."""
    if request.caller is None:
        raise LookupError("the gateway always says who asks")
    question = request.text_of_last_user()
    document = best(question, current_app.config["DOCUMENTS"].get(request.caller.account.name, []))
    answer = document or "Your handbook does not say."
    yield from re.findall(r"\S+\s*", answer)
    # A real pipeline reports what its own language model counted.
    yield Usage(prompt_tokens=len(question.split()), completion_tokens=len(answer.split()))


def create_app() -> Flask:
    """The company's pages, with the API below /oneai."""
    app = Flask(__name__)
    app.config["DOCUMENTS"] = DOCUMENTS
    app.config["ONEAI_PROVIDERS"] = {"handbook": {"backend": handbook}}
    app.config["ONEAI_MODELS"] = {
        "handbook": {"routes": ["handbook/v1"], "input": "0.10", "output": "0.40"}
    }
    app.config["ONEAI_ACCOUNTS"] = {
        name: {"tier": "pro", "balance": "5.00", "keys": [key_of(app, name)]} for name in DOCUMENTS
    }
    OneAI(app)

    @app.get("/")
    def home() -> str:
        return "The company's own page."

    return app


def key_of(app: Flask, name: str) -> str:
    """The account's key: from the environment, or a new one that is shown in the log."""
    secret = os.environ.get(f"{name.upper()}_KEY")
    if not secret:
        secret = new_secret()
        app.logger.warning("%s's API key for this run: %s", name, secret)
    return secret
