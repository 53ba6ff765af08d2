"""A model's routes, in order, until one answers."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, NamedTuple

from .admission import Admission
from .attempt import Attempt
from .call import Call
from .catalog import Route
from .cooldown import Cooldown, Visit
from .errors import (
    APIError,
    BackendError,
    BackendMisconfigured,
    BackendOverloaded,
    BackendUnavailable,
)
from .per_process import PerProcess
from .protocol.cancellation import Cancellation
from .protocol.chat import BOUNDS, Adjustment, ChatRequest, Completion, Item, Timeouts
from .providers import Provider

log = logging.getLogger("oneai_middleware.dispatch")


class Dispatch:
    """Sends calls to the providers of their models.

    A route that fails before it gave output is followed by the next, within
    ``patience`` seconds of the call's admission; after output its failure is the
    call's. The first route is asked a second time if the connection to it broke: a
    provider may close an idle one at any moment. Backends run inside ``scope``, on
    whichever thread: a host's own function finds its context there. ``choice``
    draws among routes of one rank.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        scope: Callable[[], AbstractContextManager[object]],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        choice: random.Random | None = None,
    ) -> None:
        self._providers = providers
        self._timeouts = {p.name: _in_time(p.timeouts) for p in providers.values()}
        self._scope = scope
        self._patience = patience
        self._clock = clock
        self._choice = choice or random.Random()
        self._cooldowns = PerProcess(
            lambda: {p.name: Cooldown(p.name, p.cooldown, clock) for p in providers.values()}
        )

    def stream(
        self, call: Call, request: ChatRequest, admission: Admission, cancellation: Cancellation
    ) -> Iterator[Item]:
        """The answer piece by piece. ``call`` knows the attempt that gives it.

        :raises BackendError: of the last route that failed.
        :raises InvalidRequest: a provider says that the caller is at fault.
        """
        with self._scope():
            for attempt in self._attempts(call, request, admission, cancellation):
                with _judged(attempt):
                    yield from attempt.stream()
                    return
        raise _failure(call)

    def complete(
        self, call: Call, request: ChatRequest, admission: Admission, cancellation: Cancellation
    ) -> Completion:
        """The answer in one piece; otherwise as :meth:`stream`."""
        with self._scope():
            for attempt in self._attempts(call, request, admission, cancellation):
                with _judged(attempt):
                    return attempt.complete()
        raise _failure(call)

    def _attempts(
        self, call: Call, request: ChatRequest, admission: Admission, cancellation: Cancellation
    ) -> Iterator[Attempt]:
        """One attempt after the other, while those before it fail and time is left.

        :raises BackendOverloaded: every provider is left alone for now.
        """
        order = _Order(call, *_bounded(request, admission), cancellation)
        pauses = []
        for route in self._drawn(admission.model.routes):
            if self._is_too_late(order):
                return
            cooldown = self._cooldowns()[route.provider]
            visit = cooldown.admit()
            if visit is None:
                pauses.append(cooldown.remaining)
                continue
            attempt = self._attempt(order, route, visit, repeatable=call.attempt is None)
            yield attempt
            if attempt.is_worth_repeating and not self._is_too_late(order):
                yield self._attempt(order, route, visit)
            visit.failed()  # unless somebody has said how it went
        if call.attempt is None and pauses:
            raise BackendOverloaded("every provider is left alone for now", retry_after=min(pauses))

    def _is_too_late(self, order: _Order) -> bool:
        waited = self._clock() - order.call.admitted
        return order.cancellation.cancelled or waited > self._patience

    def _attempt(
        self, order: _Order, route: Route, visit: Visit, *, repeatable: bool = False
    ) -> Attempt:
        """The next attempt of the call, at ``route``."""
        call, provider = order.call, self._providers[route.provider]
        _log_failure(call)
        request = ChatRequest(
            {**order.body, "model": route.upstream},
            caller=call.caller,
            request_id=call.request_id,
            timeouts=self._timeouts[provider.name],
            adjusted=dict(order.adjusted),
        )
        attempt = Attempt(provider, request, visit, self._clock, repeatable=repeatable)
        call.provider, call.attempt = provider.name, attempt
        order.cancellation.on_cancel(request.cancellation.cancel)
        return attempt

    def _drawn(self, routes: Iterable[Route]) -> Iterator[Route]:
        """The routes of each rank, the heavier the sooner."""
        for _, rank in itertools.groupby(routes, key=attrgetter("rank")):
            left = list(rank)
            while len(left) > 1:
                (drawn,) = self._choice.choices(left, [route.weight for route in left])
                left.remove(drawn)
                yield drawn
            yield from left


class _Order(NamedTuple):
    """What is wanted of whichever provider: the call's body and what was adjusted in it."""

    call: Call
    body: Mapping[str, Any]
    adjusted: dict[str, Adjustment]
    cancellation: Cancellation


class _judged(AbstractContextManager[None]):
    """Learns from how the attempt ends whether its provider is well. A failure that
    another one may still make good is kept in the attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        attempt, visit = self._attempt, self._attempt.visit
        if isinstance(error, BackendError):
            attempt.failure = error
            if attempt.is_given_up:
                visit.undecided()
            elif isinstance(error, BackendMisconfigured):
                # Told without delay, and perhaps about one of many models.
                visit.succeeded()
            elif not attempt.is_worth_repeating:
                visit.failed(error.asked)
            return not attempt.begun
        if error is None or isinstance(error, APIError):  # it answered; the caller is at fault
            visit.succeeded()
        else:
            visit.undecided()
        return False


def _bounded(
    request: ChatRequest, admission: Admission
) -> tuple[Mapping[str, Any], dict[str, Adjustment]]:
    """What goes upstream, no longer an answer than the model gives and the balance pays
    for, and which parameter of the caller's that changed."""
    body = request.body
    bound = admission.output_bound if admission.lowered else admission.model.max_output
    if bound is None or ((asked := request.max_tokens) is not None and asked <= bound):
        return body, {}
    given = [name for name in BOUNDS if name in body]
    bounded = {**body, given[0] if given else "max_tokens": bound}
    return bounded, dict.fromkeys(given[:1], "changed")


def _in_time(timeouts: Timeouts) -> Timeouts:
    """``timeouts`` with no more for the connection than for what is to come over it."""
    return timeouts._replace(connect=min(timeouts.connect, timeouts.first_token, timeouts.total))


def _failure(call: Call) -> BackendError:
    attempt = call.attempt
    failure = attempt.failure if attempt is not None else None
    return failure or BackendUnavailable("the call was over before a route was tried")


def _log_failure(call: Call) -> None:
    """Tell the operator of a failure that the caller may never see."""
    failure = call.attempt.failure if call.attempt is not None else None
    if failure is not None:
        log.warning(
            "%s: provider %s failed: %s: %s; trying on",
            call.request_id,
            call.provider,
            failure.code,
            failure.detail or "no detail",
        )
