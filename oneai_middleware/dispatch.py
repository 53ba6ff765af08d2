"""A model's routes, in order, until one answers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from .admission import Admission
from .backends.base import Backend, running
from .call import Call
from .errors import BackendError, BackendUnavailable, OneAIError
from .protocol.cancellation import Cancellation
from .protocol.chat import ChatRequest, Completion, Item
from .providers import Provider

log = logging.getLogger("oneai_middleware.dispatch")


class Dispatch:
    """Sends calls to the providers of their models.

    A route that fails before it gave anything is followed by the next; once
    something was given, its failure is the call's. Backends run inside ``scope``,
    on whichever thread: a host's own function finds its context there.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        scope: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._providers = providers
        self._scope = scope

    def stream(
        self, call: Call, request: ChatRequest, admission: Admission, cancellation: Cancellation
    ) -> Iterator[Item]:
        """The answer piece by piece. ``call`` learns which provider gives it.

        :raises BackendError: of the last route that failed.
        :raises InvalidRequest: a provider says that the caller is at fault.
        """
        failure: BackendError = BackendUnavailable(
            "the call was cancelled before a route was tried"
        )
        with self._scope():
            for backend, routed in self._routes(call, request, admission, cancellation):
                given = False
                try:
                    with _backend_errors():
                        for item in running(backend, routed):
                            given = given or item is not None
                            yield item
                    return
                except BackendError as error:
                    failure = _noted(call, error, cancellation)
                    if given:
                        break
        raise failure

    def complete(
        self, call: Call, request: ChatRequest, admission: Admission, cancellation: Cancellation
    ) -> Completion:
        """The answer in one piece; otherwise as :meth:`stream`."""
        failure: BackendError = BackendUnavailable(
            "the call was cancelled before a route was tried"
        )
        with self._scope():
            for backend, routed in self._routes(call, request, admission, cancellation):
                try:
                    with _backend_errors():
                        return backend.complete(routed)
                except BackendError as error:
                    failure = _noted(call, error, cancellation)
        raise failure

    def _routes(
        self, call: Call, request: ChatRequest, admission: Admission, cancellation: Cancellation
    ) -> Iterator[tuple[Backend, ChatRequest]]:
        """Each route's backend with the request as it goes there, until cancelled."""
        body = _body(request, admission)
        for route in admission.model.routes:
            if cancellation.cancelled:
                return
            provider = self._providers[route.provider]
            call.provider, call.timeouts = provider.name, provider.timeouts
            yield (
                provider.backend,
                ChatRequest(
                    {**body, "model": route.upstream},
                    caller=call.caller,
                    request_id=call.request_id,
                    timeouts=provider.timeouts,
                    cancellation=cancellation,
                ),
            )


def _body(request: ChatRequest, admission: Admission) -> dict[str, Any]:
    """What goes upstream: as asked, but no longer an answer than the balance pays for."""
    body = dict(request.body)
    if admission.lowered:
        name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        body[name] = admission.output_bound
    return body


@contextlib.contextmanager
def _backend_errors() -> Iterator[None]:
    """Whatever a backend raises beside this family's errors is a bug of its own."""
    try:
        yield
    except OneAIError:
        raise
    except Exception as error:
        log.exception("a backend failed with an error of its own")
        raise BackendUnavailable(f"the backend raised {type(error).__name__}") from error


def _noted(call: Call, error: BackendError, cancellation: Cancellation) -> BackendError:
    """``error``, told to the operator unless it is our own doing."""
    if not cancellation.cancelled:
        log.warning(
            "%s: provider %s failed: %s: %s",
            call.request_id,
            call.provider,
            error.code,
            error.detail or "no detail",
        )
    return error
