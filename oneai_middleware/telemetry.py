"""What is recorded about a call, in one place: its id and its line in the log."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from .call import Call
from .protocol import json

access_log = logging.getLogger("oneai_middleware.access")

# JSON escapes the control characters below a space; terminals obey these as well.
_CONTROLS = re.compile("[\x7f-\x9f]")


def new_request_id() -> str:
    """An id no other call has: it names the call in logs, headers and the ledger."""
    return f"req_{os.urandom(16).hex()}"


def log_call(call: Call) -> None:
    """One line of JSON a call, at INFO on ``oneai_middleware.access``.

    Costs are nano-dollars, durations milliseconds. The same fields are on the log
    record as ``record.oneai``. What a caller could put into a line is escaped.
    """
    if access_log.isEnabledFor(logging.INFO):
        fields = _fields(call)
        line = json.encode(fields).decode()
        line = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
        access_log.info("%s", line, extra={"oneai": fields})


def _fields(call: Call) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "method": call.method,
        "path": call.path[:200],
        "status": call.status,
        "outcome": call.outcome,
        "duration_ms": round((call.ended - call.started) * 1000, 1),
    }
    if call.caller is not None:
        fields["account"] = call.caller.account.name
        fields["key"] = call.caller.key.id if call.caller.key else None
    if call.model is not None:
        fields["model"] = call.model.id
        fields["provider"] = call.provider
    if call.request is not None:
        fields["stream"] = call.request.stream
    if call.usage is not None:
        fields["prompt_tokens"] = call.usage.prompt_tokens
        fields["completion_tokens"] = call.usage.completion_tokens
        fields["estimated"] = call.usage.estimated
        fields["cost"] = call.cost
    if call.retry:
        fields["retry"] = call.retry
    if call.client_request_id:
        fields["client_request_id"] = call.client_request_id
    return fields
