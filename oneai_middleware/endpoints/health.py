"""``GET /health``: the gateway runs. Asks no store and no provider, needs no key."""

from __future__ import annotations

from typing import Any

from ..admission import AdmissionControl
from ..call import Call
from ..protocol.response import Response


class Health:
    """The health endpoint: 503 once this process takes no new calls, so that a load
    balancer sends them elsewhere."""

    def __init__(self, control: AdmissionControl) -> None:
        self._control = control

    def __call__(self, environ: dict[str, Any], call: Call) -> Response:
        """Say how this process is."""
        if self._control.is_draining:
            return Response.of_json({"status": "draining", "calls": self._control.calls}, 503)
        return Response.of_json({"status": "ok"})
