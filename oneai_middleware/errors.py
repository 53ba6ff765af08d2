"""Every error of the gateway, in one family.

::

    OneAIError
    ├── ConfigurationError              at start-up only; never served
    ├── ReferenceConflict               from ``Ledger.top_up``; never served
    └── APIError                        one JSON envelope            fault
        ├── InvalidRequest              400                          caller
        │   ├── InvalidJSON             400
        │   ├── ContextLengthExceeded   400
        │   └── ContentRefused          400
        ├── AuthenticationFailed        401                          caller
        ├── CrossSiteRequest            403                          caller
        ├── UnknownURL                  404                          caller
        ├── ModelNotFound               404                          caller
        ├── MethodNotAllowed            405                          caller
        ├── LengthRequired              411                          caller
        ├── RequestTooLarge             413                          caller
        ├── UnsupportedMediaType        415                          caller
        ├── CallerLeft                  499  (nobody reads it)       caller
        ├── InsufficientBalance         402                          policy
        ├── KeyBudgetExhausted          402                          policy
        ├── BalanceOnHold               429                          policy
        ├── RateLimitExceeded           429                          policy
        ├── BackendError                raised by backends           provider
        │   ├── BackendOverloaded       503
        │   ├── BackendMisconfigured    503
        │   ├── BackendUnavailable      502
        │   │   └── BackendDisconnected 502
        │   └── BackendTimeout          504
        ├── GatewayOverloaded           503                          gateway
        ├── StoreUnavailable            503                          gateway
        │   └── HoldLost                503
        └── InternalError               500                          gateway

The envelope is OpenAI's: ``{"error": {"message", "type", "param", "code"}}``
with all four keys always present and ``code`` a string, so that the
exceptions of the official SDKs carry them. ``code`` is also the cause that
logs and metrics name: a closed vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

Fault = Literal["caller", "policy", "provider", "gateway"]


class OneAIError(Exception):
    """The root: catch it to catch every error this package raises on purpose."""


class ConfigurationError(OneAIError):
    """A setting is wrong; the message names the setting and the fix."""


class ReferenceConflict(OneAIError):
    """A top-up reference was used before, with another amount."""


class APIError(OneAIError):
    """An error a caller may see.

    ``message`` reaches the caller and must hold no secret, no host name and no
    upstream text. ``detail`` is for the operator's log alone. ``retry_after``
    is in seconds; where waiting cannot help, ``retryable`` is false and the SDK
    is told so by ``x-should-retry: false``.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    fault: ClassVar[Fault] = "gateway"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        detail: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail
        self.retry_after = retry_after
        self.retryable = retryable
        if code is not None:
            self.code = code

    def envelope(self) -> dict[str, Any]:
        """The JSON body, as a dict."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> list[tuple[str, str]]:
        """The headers that steer the SDKs' own retries.

        ``Retry-After`` is a whole number of seconds, at least 1: the SDKs ignore
        a zero. They also give up on, or ignore, more than a minute, so a longer
        wait says ``x-should-retry: false`` beside the true number.
        """
        headers = []
        retryable = self.retryable
        if self.retry_after is not None:
            seconds = max(1, math.ceil(self.retry_after))
            headers.append(("Retry-After", str(seconds)))
            if seconds > 60:
                retryable = False
        if retryable is not None:
            headers.append(("x-should-retry", "true" if retryable else "false"))
        return headers


# --- the caller's fault -----------------------------------------------------


class InvalidRequest(APIError):
    """The request cannot be understood; ``param`` is the path to what is wrong."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    fault = "caller"


class InvalidJSON(InvalidRequest):
    """The body is not a JSON object in UTF-8."""

    code = "invalid_json"


class ContextLengthExceeded(InvalidRequest):
    """The provider says that the prompt does not fit the model."""

    code = "context_length_exceeded"


class ContentRefused(InvalidRequest):
    """The provider's content filter refused the prompt or the answer."""

    code = "content_filter"


class AuthenticationFailed(APIError):
    """No key, or none that opens anything."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    fault = "caller"

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("WWW-Authenticate", "Bearer")]


class CrossSiteRequest(APIError):
    """A login of the host was used from another site's page."""

    status = 403
    type = "invalid_request_error"
    code = "cross_site_request"
    fault = "caller"


class UnknownURL(APIError):
    """Nothing of ours lives at this path."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_url"
    fault = "caller"


class ModelNotFound(APIError):
    """No such model, or none that this caller may use: the two look the same."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    fault = "caller"


class MethodNotAllowed(APIError):
    """The path exists, the method does not; ``allow`` becomes the Allow header."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    fault = "caller"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("Allow", self.allow)]


class LengthRequired(APIError):
    """A body came in a form whose end this server cannot tell."""

    status = 411
    type = "invalid_request_error"
    code = "length_required"
    fault = "caller"


class RequestTooLarge(APIError):
    """The body is over ``max_body_bytes``."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"
    fault = "caller"


class UnsupportedMediaType(APIError):
    """The body is compressed; only identity is read."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"
    fault = "caller"


class CallerLeft(APIError):
    """The caller hung up before the answer; kept for the log and the ledger."""

    status = 499
    type = "invalid_request_error"
    code = "caller_left"
    fault = "caller"


# --- our policy -------------------------------------------------------------


class InsufficientBalance(APIError):
    """The account's money does not cover the smallest answer."""

    status = 402
    type = "insufficient_quota"
    code = "insufficient_balance"
    fault = "policy"


class KeyBudgetExhausted(APIError):
    """The account has money, but this key's own budget is spent."""

    status = 402
    type = "insufficient_quota"
    code = "key_budget_exhausted"
    fault = "policy"


class BalanceOnHold(APIError):
    """The money is there, but other calls of the account hold it."""

    status = 429
    type = "rate_limit_error"
    code = "balance_on_hold"
    fault = "policy"


class RateLimitExceeded(APIError):
    """A limit was reached.

    ``subject`` is whose limit it is, ``limit`` which one (``"rpm"``, ``"tpm"``
    or ``"concurrent"``), ``retry_after`` the true wait in seconds, and ``figures``
    the LimitStatus for the x-ratelimit headers.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    fault = "policy"

    def __init__(
        self,
        message: str,
        *,
        subject: str,
        limit: str,
        figures: Any = None,
        code: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after=retry_after, retryable=retryable)
        self.subject = subject
        self.limit = limit
        self.figures = figures


# --- the provider's fault ---------------------------------------------------


class BackendError(APIError):
    """A provider could not answer; the next route is tried while nothing went out.

    What is raised to the caller is written here, never the provider's own text:
    put that into ``detail``.
    """

    status = 502
    type = "api_error"
    code = "upstream_error"
    fault = "provider"
    wording: ClassVar[str] = "The model's provider could not be reached or gave a bad answer."

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(self.wording, detail=detail, retry_after=retry_after, retryable=retryable)
        self.asked = retry_after
        """Seconds for which the provider itself asked to be left alone, if it did."""


class BackendUnavailable(BackendError):
    """Unreachable, broken off, or an answer that makes no sense."""


class BackendDisconnected(BackendUnavailable):
    """There was no connection, or it broke before any reply came: the provider may
    have closed an idle one, so the same route is tried a second time."""


class BackendTimeout(BackendError):
    """Too slow: no connection, no first token, or silence in mid-answer."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"
    wording = "The model's provider did not answer in time."


class BackendOverloaded(BackendError):
    """Busy or throttling; worth another try in ``retry_after`` seconds."""

    status = 503
    type = "service_unavailable_error"
    code = "model_overloaded"
    wording = "This model is overloaded. Try again shortly or switch models."

    def __init__(self, detail: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(detail, retry_after=min(max(retry_after or 1, 1), 60))
        self.asked = retry_after


class BackendMisconfigured(BackendError):
    """The provider refused our key, our money, our region or our model id.

    That is our operator's problem and no caller's: they see a 503 that an SDK
    does not repeat, and never the provider's 401, 402, 403 or 404.
    """

    status = 503
    type = "service_unavailable_error"
    code = "provider_unavailable"
    wording = "This model's provider is not available at the moment. Try another model."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, retryable=False)


# --- our own fault ----------------------------------------------------------


class GatewayOverloaded(APIError):
    """This process already runs ``max_calls`` calls; the host's pages come first."""

    status = 503
    type = "service_unavailable_error"
    code = "gateway_overloaded"
    fault = "gateway"


class StoreUnavailable(APIError):
    """Keys, limits or money cannot be looked up safely; nothing is given away."""

    status = 503
    type = "service_unavailable_error"
    code = "store_unavailable"
    fault = "gateway"


class HoldLost(StoreUnavailable):
    """The money of a call under way is no longer set aside: its ledger was out of reach
    for a whole lease, and the call was given up as lost."""

    def __init__(self) -> None:
        super().__init__("The service lost sight of your account.", detail="a hold was swept")


class InternalError(APIError):
    """A bug of ours. The message says nothing; the log says everything."""

    status = 500

    def __init__(self) -> None:
        super().__init__("The server had an error while processing your request.")


class store_errors:  # used as contextlib.suppress is, and a class for its speed
    """Turns whatever a store raises that is not of this family into a 503.

    A store that fails must never give anything away, and its exception may hold
    a password: the caller sees neither."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, OneAIError):
            raise StoreUnavailable(
                "The service cannot check your account at the moment. Try again shortly.",
                detail=f"the {self._part} failed: {type(error).__name__}",
                retry_after=1,
            ) from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence that says ``name`` is not known and what may have been meant."""
    import difflib  # only those who err pay for it

    names = {known_name.lower(): known_name for known_name in sorted(known)}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    listed = ", ".join(names.values()) or "none"
    hint = f"did you mean {names[close[0]]!r}?" if close else f"known: {listed}"
    return f"unknown {kind} {name!r}; {hint}"
