"""From Django's request to the gateway, and from its answer to Django's response."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from ...middleware import claim
from ...protocol import json
from ...relay.body import EventStream
from .conf import close_connections, gateway

UNDER_ASGI = {
    "error": {
        "message": "This API needs WSGI. Serve the project through its wsgi.py, not its asgi.py.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
}


def serve(request: HttpRequest, mount: str) -> HttpResponseBase | None:
    """The gateway's answer to ``request``, or ``None`` if it is not below ``mount``."""
    below = claim({"PATH_INFO": request.path_info}, mount)
    if below is None:
        return None
    given = getattr(request, "environ", None)
    if given is None:
        return _ours_to_log(HttpResponse(json.encode(UNDER_ASGI), "application/json", 500))
    environ = {**given, **below, "SCRIPT_NAME": given.get("SCRIPT_NAME", "") + mount}
    for name in ("SCRIPT_NAME", "PATH_INFO"):  # which Django has decoded
        environ[name] = environ[name].encode().decode("latin-1")
    if type(environ.get("wsgi.input")).__name__ == "FakePayload":
        # Django's test client claims to be one of several processes; a test runs in one.
        environ["wsgi.multiprocess"] = False
    if hasattr(request, "_body"):
        # A middleware before us has read it from the socket, where nothing more comes.
        environ["wsgi.input"] = io.BytesIO(request.body)
    # A GZipMiddleware before us would hold a stream back until its end.
    request.META.pop("HTTP_ACCEPT_ENCODING", None)
    # What stands before us may have asked the database; the answer takes its time.
    close_connections()
    return respond(gateway(), environ)


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
        response = StreamingHttpResponse(_Stream(body), status=int(status[:3]))
        del response["Content-Type"]
    else:
        response = HttpResponse(b"".join(body), status=int(status[:3]))
        del response["Content-Type"]
    for name, value in headers:
        response[name] = f"{response[name]}, {value}" if name in response else value
    return _ours_to_log(response)


class _Stream:
    """An event stream that lets go of its thread's databases before it begins: what
    stands before us may have asked them once more on the answer's way out."""

    def __init__(self, body: EventStream) -> None:
        self._body = body
        self._begun = False

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> bytes:
        if not self._begun:
            self._begun = True
            close_connections()
        return next(self._body)

    def close(self) -> None:
        self._body.close()


def _ours_to_log(response: HttpResponseBase) -> HttpResponseBase:
    """Keep Django from logging the answer: it would e-mail every 5xx to the admins, and
    the older versions the caller's key with it."""
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
