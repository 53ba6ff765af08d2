"""``POST /v1/chat/completions``: one call, from its credential to its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..admission import Admission, AdmissionControl, Scope
from ..auth import Authentication
from ..call import Call
from ..catalog import Catalog
from ..dispatch import Dispatch
from ..protocol.chat import ChatRequest
from ..protocol.fields import read_chat
from ..protocol.normalise import StreamNormaliser
from ..protocol.payload import read_body
from ..protocol.response import Response
from ..relay.body import EventStream, completion_of
from ..relay.exchange import Exchange
from ..relay.pump import pump_threads
from ..relay.watch import Watch
from ..servers import connection_of
from ..settings import Settings

STREAM_HEADERS = [
    ("Content-Type", "text/event-stream; charset=utf-8"),
    # Proxies would hold events back, to compress them or to fill a buffer.
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
]


class Chat:
    """The chat endpoint, with the parts it needs."""

    def __init__(
        self,
        *,
        authentication: Authentication,
        catalog: Catalog,
        control: AdmissionControl,
        dispatch: Dispatch,
        watch: Watch,
        settings: Settings,
        scope: Scope,
        clock: Callable[[], float],
    ) -> None:
        self._authentication = authentication
        self._catalog = catalog
        self._control = control
        self._dispatch = dispatch
        self._watch = watch
        self._settings = settings
        self._scope = scope
        self._clock = clock
        self._threads = pump_threads()

    def __call__(self, environ: dict[str, Any], call: Call) -> Response:
        """Answer one chat request.

        :raises APIError: of whatever step refuses or fails.
        """
        with self._scope():
            call.caller = caller = self._authentication.caller(environ)
        body = read_body(environ, self._settings.max_body_bytes)
        call.request = request = read_chat(body)
        call.model = model = self._catalog.find(request.model, caller)
        request = request.with_defaults(model.defaults)
        admission = self._control.admit(call, caller, request, model)
        call.admitted = self._clock()
        exchange = self._exchange(environ, call, admission)
        answer = self._stream if request.stream else self._complete
        return answer(call, request, exchange)

    def _complete(self, call: Call, request: ChatRequest, exchange: Exchange) -> Response:
        data = completion_of(
            exchange,
            lambda: self._dispatch.complete(
                call, request, exchange.admission, exchange.cancellation
            ),
            id=_answer_id(call),
            created=int(time.time()),
            model=request.model,
        )
        return Response.of_encoded(data)

    def _stream(self, call: Call, request: ChatRequest, exchange: Exchange) -> Response:
        stream = EventStream(
            exchange,
            self._dispatch.stream(call, request, exchange.admission, exchange.cancellation),
            StreamNormaliser(
                request.model, _answer_id(call), int(time.time()), request.include_usage
            ),
            keep_alive=self._settings.keep_alive,
            clock=self._clock,
            threads=self._threads,
        )
        stream.open()
        return Response(200, list(STREAM_HEADERS), stream)

    def _exchange(self, environ: dict[str, Any], call: Call, admission: Admission) -> Exchange:
        return Exchange(
            call,
            admission,
            self._control,
            self._watch,
            timeouts=self._settings.timeouts,
            lease=self._settings.lease,
            clock=self._clock,
            write_timeout=self._settings.write_timeout,
            connection=connection_of(environ),
            bill_departed=self._settings.on_disconnect == "delivered",
        )


def _answer_id(call: Call) -> str:
    return "chatcmpl-" + call.request_id.removeprefix("req_")
