"""The gateway: a WSGI application that serves the API, with its parts wired.

Errors become JSON here and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as RouteMethodNotAllowed
from werkzeug.routing import Map, Rule

from .accounts import read_accounts, read_tiers, read_unenforced
from .admission import AdmissionControl, Scope
from .auth import Authentication
from .call import Call
from .catalog import load_catalog
from .dispatch import Dispatch
from .endpoints.account import AccountEndpoints
from .endpoints.chat import Chat
from .endpoints.health import Health
from .endpoints.models import Models
from .errors import APIError, ConfigurationError, InternalError, MethodNotAllowed, UnknownURL
from .key_stores.base import KeyStore
from .key_stores.cached import CachedKeyStore
from .ledgers.base import Ledger
from .per_process import PerProcess
from .plugins import build_store, installed, load_callable
from .protocol.response import Headers, Response
from .providers import read_providers
from .rate_limiters.base import RateLimiter
from .rate_limiters.divided import DividedRateLimiter
from .rate_limiters.guarded import GuardedRateLimiter
from .rate_limiters.headers import limit_headers
from .rate_limiters.shadow import ShadowRateLimiter
from .relay.body import EventStream
from .relay.watch import Watch
from .servers import threads_of
from .settings import Settings
from .telemetry import log_call, new_request_id

log = logging.getLogger("oneai_middleware")

LOOKS = 16
"""Requests with which the server is asked for its threads, if it does not say."""

StartResponse = Callable[..., Any]
Endpoint = Callable[..., Response]


@functools.cache
def _routes() -> Map:
    """The paths below the mount; to compile them takes milliseconds."""
    rules = [
        Rule("/v1/chat/completions", methods=["POST"], endpoint="chat"),
        Rule("/v1/models", methods=["GET"], endpoint="models"),
        Rule("/v1/models/<path:model_id>", methods=["GET"], endpoint="models"),
        Rule("/v1/key", methods=["GET"], endpoint="key"),
        Rule("/v1/balance", methods=["GET"], endpoint="balance"),
        Rule("/v1/usage", methods=["GET"], endpoint="usage"),
        Rule("/health", methods=["GET"], endpoint="health"),
    ]
    # Nothing may redirect: a redirect makes clients drop the body of a POST.
    return Map(rules, strict_slashes=False, merge_slashes=False, redirect_defaults=False)


@functools.cache
def _straight_routes() -> dict[tuple[str, str], str]:
    """The endpoint of a path in which nothing varies and a method: no router is needed."""
    return {
        (rule.rule, method): rule.endpoint
        for rule in _routes().iter_rules()
        if not rule.arguments
        for method in rule.methods or ()
    }


class Gateway:
    """The API as a WSGI application: ``/v1/…`` and ``/health`` below its own root.

    Options are those of :class:`~oneai_middleware.settings.Settings`. Host code
    (functions, stores, hooks) runs inside ``scope()``, a context manager entered on
    whichever thread it runs. ``clock`` is monotonic seconds.

    :raises ConfigurationError: a setting is wrong. Nothing is connected to, so an
        unreachable provider or store never keeps the host from starting.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        scope: Scope = contextlib.nullcontext,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        if settings is not None and options:
            raise ConfigurationError("give a Settings object or options, not both")
        self.settings = settings = settings or Settings.load(options)
        self.scope = scope
        self._clock = clock
        self.providers = read_providers(settings.providers, settings.timeouts)
        self.catalog = load_catalog(settings.models, self.providers)
        self.tiers = read_tiers(settings.tiers)
        # Read again by the stores that use them; here so that a mistake names its row.
        read_accounts(settings.accounts, self.tiers)
        self._watch = Watch()
        self.rate_limiter = build_store(
            "rate_limiter", settings.rate_limiter, RateLimiter, settings
        )
        self.key_store = self._key_store()
        self.ledger = build_store("ledger", _ledger_spec(settings), Ledger, settings)
        self._limiter = self._limits()
        self._control = self._admission_control(scope)
        self._counts_alone = self.rate_limiter.one_process and settings.processes is None
        self._warn_of_workers(several=os.environ.get("WEB_CONCURRENCY", "1") not in ("", "0", "1"))
        self._server_threads: PerProcess[list[int | None]] = PerProcess(list)
        self._endpoints = self._wire(scope)
        self._router = _routes().bind("localhost")
        self._straight = _straight_routes()

    def close(self) -> None:
        """Settle what has not been, once more, and close idle connections to providers;
        the next call opens new ones."""
        self._control.retry_settlements()
        for provider in self.providers.values():
            provider.backend.close()

    def drain(self) -> None:
        """Take no new calls in this process: they get 503, and ``/health`` says so.
        Those under way run on. For hosts that know they are about to be stopped."""
        self._control.drain()

    @property
    def limiter_counts(self) -> Mapping[str, int]:
        """What the limits have counted in this process so far: ``would_refuse_rpm``, ``_tpm``
        and ``_concurrent`` of those that are not enforced; and where a store is shared, its
        ``failures`` and the calls that were decided without it, ``stood_in``."""
        return self._limiter.counts()

    def _key_store(self) -> KeyStore:
        store = build_store("key_store", self.settings.key_store, KeyStore, self.settings)
        if not store.cacheable:
            return store
        announcements = self.rate_limiter.announcements()
        return CachedKeyStore(store, aside=self._aside, announcements=announcements)

    def _aside(self, job: Callable[[], None]) -> None:
        """Run ``job``, which asks a store, without anybody waiting for it."""

        def run() -> None:
            with self.scope():
                job()

        self._watch.aside(run)

    def _limits(self) -> RateLimiter:
        """The rate limiter under the policies of the settings."""
        settings, limiter = self.settings, self.rate_limiter
        if not limiter.one_process:
            if settings.processes is not None:
                raise ConfigurationError(
                    "processes: this rate_limiter counts for all processes together; remove it"
                )
            limiter = GuardedRateLimiter(limiter, settings.on_store_down, lease=settings.lease)
        elif settings.processes is not None:
            limiter = DividedRateLimiter(limiter, settings.processes)
        return ShadowRateLimiter(limiter)

    def _admission_control(self, scope: Scope) -> AdmissionControl:
        settings = self.settings
        return AdmissionControl(
            self._limiter,
            self.ledger,
            tiers=self.tiers,
            unenforced=read_unenforced(settings.tiers),
            scope=scope,
            lease=settings.lease,
            default_output=settings.default_output,
            max_calls=settings.max_calls,
            drain_file=settings.drain_file,
            allow_memory_ledger=settings.allow_memory_ledger,
            top_up_url=settings.top_up_url,
            upgrade_url=settings.upgrade_url,
        )

    def _wire(self, scope: Scope) -> dict[str, Endpoint]:
        """The endpoint behind each name of :func:`_routes`."""
        settings = self.settings
        authentication = Authentication(
            self.key_store, load_callable("authenticate", settings.authenticate)
        )
        account = AccountEndpoints(
            authentication=authentication, ledger=self.ledger, tiers=self.tiers, scope=scope
        )
        models = Models(authentication=authentication, catalog=self.catalog, scope=scope)
        chat = Chat(
            authentication=authentication,
            catalog=self.catalog,
            control=self._control,
            dispatch=Dispatch(
                self.providers,
                scope=scope,
                patience=settings.first_token_timeout,
                clock=self._clock,
            ),
            watch=self._watch,
            settings=settings,
            scope=scope,
            clock=self._clock,
        )
        return {
            "chat": chat,
            "models": models,
            "key": account.key,
            "balance": account.balance,
            "usage": account.usage,
            "health": Health(self._control),
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; what goes wrong is one JSON error."""
        call = self._call(environ)
        try:
            response = self._answer(environ, call)
        except APIError as error:
            response = _refusal(error, call)
        except Exception:
            log.exception("%s: an error of the gateway's own", call.request_id)
            response = _refusal(InternalError(), call)
        response.headers.append(("x-request-id", call.request_id))
        if call.limits is not None:
            response.headers += limit_headers(call.limits)
        response.headers += _adjustment_headers(call)
        call.status = response.status
        if not isinstance(response.body, EventStream):
            call.ended = self._clock()
            log_call(call)
        return self._send(response, call, start_response)

    def _warn_of_workers(self, *, several: bool) -> None:
        """Say once that limits do not hold where several processes count for themselves."""
        if several and self._counts_alone:
            self._counts_alone = False
            log.warning(
                "several worker processes run and each counts the limits in its own memory, so "
                "that N of them admit N times the limit: set rate_limiter = 'redis://…', or "
                "processes = N, or run one process with many threads"
            )

    def _call(self, environ: dict[str, Any]) -> Call:
        several_workers = bool(environ.get("wsgi.multiprocess"))
        self._warn_of_workers(several=several_workers)
        return Call(
            new_request_id(),
            environ.get("REQUEST_METHOD", "GET"),
            environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace"),
            self._clock(),
            several_workers=several_workers,
            threads=self._threads(environ),
            client_request_id=environ.get("HTTP_X_CLIENT_REQUEST_ID", "")[:128],
            retry=environ.get("HTTP_X_STAINLESS_RETRY_COUNT", "")[:8],
        )

    def _threads(self, environ: dict[str, Any]) -> int | None:
        """How many threads this process serves requests with; looked up until it is known,
        or the server's silence is."""
        found = self._server_threads()
        if not found or (found[-1] is None and len(found) < LOOKS):
            found.append(threads_of(environ))
        return found[-1]

    def _send(
        self, response: Response, call: Call, start_response: StartResponse
    ) -> Iterable[bytes]:
        try:
            start_response(response.status_line(), response.safe_headers())
        except BaseException:
            if isinstance(response.body, EventStream):
                response.body.close()
            raise
        return () if call.method == "HEAD" else response.body

    def _answer(self, environ: dict[str, Any], call: Call) -> Response:
        path = call.path
        if path.endswith("/"):
            path = path[:-1]
        name = self._straight.get((path, call.method))
        if name is not None:
            return self._endpoints[name](environ, call)
        try:
            name, arguments = self._router.match(path or "/", call.method)
        except RouteMethodNotAllowed as error:
            allow = ", ".join(sorted(error.valid_methods or ()))
            raise MethodNotAllowed(
                f"{call.method[:20]} is not allowed here; use {allow}.", allow=allow
            ) from None
        except HTTPException:
            raise UnknownURL(
                f"Unknown request URL: {call.method[:20]} {path[:100]}. "
                "Please check the URL for typos."
            ) from None
        return self._endpoints[name](environ, call, **arguments)


def _ledger_spec(settings: Settings) -> Any:
    """The ledger as set; otherwise money lives where the keys live."""
    if settings.ledger is not None:
        return settings.ledger
    spec = settings.key_store
    if isinstance(spec, str) and spec.partition("://")[0] in installed("ledgers"):
        return spec
    raise ConfigurationError(
        "ledger: name one beside a key_store of your own, such as 'memory' or 'unlimited'"
    )


def _adjustment_headers(call: Call) -> Headers:
    """Which of the caller's parameters the provider did not get as they were given."""
    if call.attempt is None or call.request is None or not call.attempt.request.adjusted:
        return []
    headers = []
    adjusted = list(call.attempt.request.adjusted.items())
    for adjustment in ("changed", "dropped"):
        # A name may be a path; what is a default of the model was nobody's wish.
        names = [
            name
            for name, kind in adjusted
            if kind == adjustment and re.split(r"\W", name)[0] in call.request.body
        ]
        if names:
            headers.append((f"x-oneai-{adjustment}", ", ".join(names)))
    return headers


def _refusal(error: APIError, call: Call) -> Response:
    call.outcome = error.code
    if error.detail is not None and error.fault == "gateway":
        log.error("%s: %s: %s", call.request_id, error.code, error.detail)
    return Response.of_json(error.envelope(), error.status, error.headers())
