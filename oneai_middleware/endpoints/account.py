"""What a caller sees of itself: ``GET /v1/key``, ``/v1/balance`` and ``/v1/usage``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

from ..accounts import Caller, Limits, dollars
from ..admission import Scope, account_limits
from ..auth import Authentication
from ..call import Call
from ..errors import InvalidRequest, store_errors
from ..ledgers.base import Ledger, UsageRow
from ..protocol.response import Response

SPAN = timedelta(days=31)
"""How far back usage is summed up for a caller who does not say."""


class AccountEndpoints:
    """Three answers about the caller, from their own key alone.

    Money is in dollars, as decimal strings: JSON's numbers would be read as floats.
    """

    def __init__(
        self,
        *,
        authentication: Authentication,
        ledger: Ledger,
        tiers: Mapping[str, Limits],
        scope: Scope,
    ) -> None:
        self._authentication = authentication
        self._ledger = ledger
        self._tiers = tiers
        self._scope = scope

    def key(self, environ: dict[str, Any], call: Call) -> Response:
        """The key that was sent and what it may; of a login, its account alone.

        :raises AuthenticationFailed: no valid credential.
        """
        with self._asked(environ, call) as caller:
            account, key = caller
        limits = account_limits(account, self._tiers)
        shown: dict[str, Any] = {
            "object": "key",
            "account": account.name,
            "tier": account.tier,
            "limits": limits._asdict(),
        }
        if key is not None:
            shown |= {
                "id": key.id,
                "label": key.label,
                "hint": key.hint,
                "key_limits": key.limits._asdict() if key.limits else None,
                "budget": None if key.budget is None else dollars(key.budget),
                "budget_period": key.period,
                "expires_at": None if key.expires is None else int(key.expires),
            }
        models = [
            only for only in (account.models, key.models if key else None) if only is not None
        ]
        shown["models"] = sorted(frozenset.intersection(*models)) if models else None
        return Response.of_json(shown)

    def balance(self, environ: dict[str, Any], call: Call) -> Response:
        """The account's money.

        :raises AuthenticationFailed: no valid credential.
        """
        with self._asked(environ, call) as caller, store_errors("ledger"):
            money = self._ledger.balance(caller.account.name)
        return Response.of_json(
            {
                "object": "balance",
                "account": caller.account.name,
                "prepaid": caller.account.prepaid,
                "currency": "usd",
                **{name: dollars(amount) for name, amount in money._asdict().items()},
            }
        )

    def usage(self, environ: dict[str, Any], call: Call) -> Response:
        """The account's calls by ``by`` (``day``, which is the default, or ``model``),
        from ``since`` up to before ``until``: without a ``since``, of 31 days.

        :raises AuthenticationFailed: no valid credential.
        :raises InvalidRequest: a parameter cannot be understood.
        """
        with self._asked(environ, call) as caller, store_errors("ledger"):
            query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            _check_names(query)
            by, since, until = _grouping(query), _time(query, "since"), _time(query, "until")
            if since is None:
                since = _before(until or now())
            rows = list(self._ledger.usage(caller.account.name, since=since, until=until, by=by))
        total = UsageRow(
            "",
            sum(row.calls for row in rows),
            sum(row.prompt_tokens for row in rows),
            sum(row.completion_tokens for row in rows),
            sum(row.cost for row in rows),
        )
        return Response.of_json(
            {
                "object": "list",
                "data": [{by: row.group, **_figures(row)} for row in rows],
                "total": _figures(total),
            }
        )

    @contextmanager
    def _asked(self, environ: dict[str, Any], call: Call) -> Iterator[Caller]:
        with self._scope():
            call.caller = self._authentication.caller(environ)
            yield call.caller


def _figures(row: UsageRow) -> dict[str, Any]:
    return {
        "calls": row.calls,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "cost": dollars(row.cost),
    }


def now() -> datetime:
    """The time from which usage is looked back."""
    return datetime.now(UTC)


def _before(at: datetime) -> datetime:
    try:
        return at - SPAN
    except OverflowError:  # the beginning of the calendar
        return at


def _check_names(query: Mapping[str, list[str]]) -> None:
    for name in query:
        if name not in ("by", "since", "until"):
            raise InvalidRequest(
                f"Unknown parameter: '{name[:50]}'. Known are by, since and until.", param=name[:50]
            )


def _grouping(query: Mapping[str, list[str]]) -> Any:
    by = query.get("by", ["day"])[-1]
    if by not in ("day", "model"):
        raise InvalidRequest("Invalid value for 'by': expected day or model.", param="by")
    return by


def _time(query: Mapping[str, list[str]], name: str) -> datetime | None:
    """A day or a time in ISO 8601, of UTC where it does not say."""
    if name not in query:
        return None
    try:
        at = datetime.fromisoformat(query[name][-1])
    except ValueError:
        raise InvalidRequest(
            f"Invalid value for '{name}': expected a day or a time such as 2026-11-01 or "
            "2026-11-01T12:00:00Z.",
            param=name,
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
