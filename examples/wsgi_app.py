"""Any WSGI application, with the API in front of it.

Run it with ``gunicorn --threads 8 wsgi_app:app`` and set DEEPSEEK_API_KEY and ALICE_KEY first;
``oneai secret`` makes a key for the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oneai_middleware import OneAIMiddleware


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The application that was there before."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"The application's own page.\n"]


app = OneAIMiddleware(
    page,
    mount="/oneai",
    providers={"deepseek": {"api_key": "env:DEEPSEEK_API_KEY"}},
    accounts={"alice": {"tier": "pro", "balance": "5.00", "keys": ["env:ALICE_KEY"]}},
)
