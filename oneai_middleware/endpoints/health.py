"""``GET /health``: the gateway runs. Asks no store and no provider, needs no key."""

from __future__ import annotations

from typing import Any

from ..call import Call
from ..protocol.response import Response


def health(environ: dict[str, Any], call: Call) -> Response:
    """Say so."""
    return Response.of_json({"status": "ok"})
