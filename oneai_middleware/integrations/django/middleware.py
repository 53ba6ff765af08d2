"""The Django middleware: is this path ours, or the project's?"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from ...middleware import claim
from ...protocol import json
from ...relay.body import EventStream
from .conf import gateway

GetResponse = Callable[[HttpRequest], HttpResponseBase]

UNDER_ASGI = {
    "error": {
        "message": "This API needs WSGI. Serve the project through its wsgi.py, not its asgi.py.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
}


class OneAIMiddleware:
    """Answers what is below the mount; hands everything else on, untouched.

    Put it first in ``MIDDLEWARE``.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        gateway()  # a mistake in the settings stops the start

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        ours = gateway()
        environ = getattr(request, "environ", None)
        seen = {"PATH_INFO": request.path_info} if environ is None else environ
        below = claim(seen, ours.settings.mount)
        if below is None:
            return self.get_response(request)
        if environ is None:
            return _ours_to_log(HttpResponse(json.encode(UNDER_ASGI), "application/json", 500))
        if type(environ.get("wsgi.input")).__name__ == "FakePayload":
            # Django's test client claims to be one of several processes; a test runs in one.
            below["wsgi.multiprocess"] = False
        if hasattr(request, "_body"):
            # A middleware before us has read it from the socket, where nothing more comes.
            below["wsgi.input"] = io.BytesIO(request.body)
        # A GZipMiddleware before us would hold a stream back until its end.
        request.META.pop("HTTP_ACCEPT_ENCODING", None)
        return respond(ours, below)


def respond(
    application: Callable[..., Iterable[bytes]], environ: dict[str, Any]
) -> HttpResponseBase:
    """What a WSGI application answers, as a Django response."""
    head: list[Any] = []
    body = application(
        environ, lambda status, headers, exc_info=None: head.extend((status, headers))
    )
    status, headers = head
    response: HttpResponseBase
    if isinstance(body, EventStream):
        response = StreamingHttpResponse(body, status=int(status[:3]))
        del response["Content-Type"]
    else:
        response = HttpResponse(b"".join(body), status=int(status[:3]))
        del response["Content-Type"]
    for name, value in headers:
        response[name] = f"{response[name]}, {value}" if name in response else value
    return _ours_to_log(response)


def _ours_to_log(response: HttpResponseBase) -> HttpResponseBase:
    """Keep Django from logging the answer: it would e-mail every 5xx to the admins, and
    the older versions the caller's key with it."""
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
