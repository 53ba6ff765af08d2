"""The right to make one call: taken whole or not at all, renewed, closed once.

A call needs a place in this process, a grant of the rate limiter (one request,
its tokens, a slot) and a hold on its account's balance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from .accounts import Account, Caller, Limits
from .call import Call
from .catalog import Model
from .errors import (
    APIError,
    HoldLost,
    InsufficientBalance,
    KeyBudgetExhausted,
    RateLimitExceeded,
    StoreUnavailable,
    store_errors,
)
from .ledgers.base import ABANDONED, Entry, Ledger
from .per_process import PerProcess
from .places import Places
from .protocol.chat import ChatRequest
from .protocol.usage import Usage
from .rate_limiters.base import Claim, Grant, RateLimiter
from .settlements import Settlements
from .tokens import estimate_prompt

log = logging.getLogger("oneai_middleware.admission")

Scope = Callable[[], AbstractContextManager[object]]

LEAST_OUTPUT = 16
"""Tokens of output a balance must afford beyond the prompt."""


class Admission(NamedTuple):
    """What one admitted call has: its grant and the draft of its row in the ledger.

    ``prompt_tokens`` is an estimate; ``output_bound`` tokens are paid for, of each
    answer, and ``lowered`` says that the balance did not reach for all it asked.
    """

    model: Model
    grant: Grant
    draft: Entry
    output_bound: int
    lowered: bool

    @property
    def prompt_tokens(self) -> int:
        """The estimate that limits and balance were asked with."""
        return self.draft.prompt_tokens

    def entry(self, call: Call, usage: Usage) -> Entry:
        """The draft, completed with what ``call`` has taken."""
        return self.draft._replace(
            provider=call.provider or self.draft.provider,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            estimated=usage.estimated,
            outcome=call.outcome or self.draft.outcome,
            cost=self.model.price.cost(usage),
            duration=max(0.0, call.ended - call.started),
        )


class AdmissionControl:
    """Decides which calls may run, and takes back what each had.

    Every store is entered inside ``scope``, on whichever thread: a host's own
    store finds its application context there.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        ledger: Ledger,
        *,
        tiers: Mapping[str, Limits],
        unenforced: Container[str] = (),
        scope: Scope,
        lease: float,
        default_output: int,
        max_calls: int | None = None,
        drain_file: Path | None = None,
        allow_memory_ledger: bool = False,
        top_up_url: str | None = None,
        upgrade_url: str | None = None,
    ) -> None:
        self._limiter = limiter
        self._ledger = ledger
        self._settlements = Settlements(ledger, scope=scope)
        self._tiers = tiers
        self._unenforced = unenforced
        self._scope = scope
        self._lease = lease
        self._default_output = default_output
        self._places = PerProcess(lambda: Places(max_calls, drain_file))
        self._one_process_money = ledger.one_process and not allow_memory_ledger
        self._top_up_url = top_up_url
        self._upgrade_url = upgrade_url

    def admit(self, call: Call, caller: Caller, request: ChatRequest, model: Model) -> Admission:
        """Take everything the call needs, or nothing. ``call`` gets its limits.

        :raises GatewayOverloaded: this process is full.
        :raises RateLimitExceeded: a limit of the account or the key.
        :raises InsufficientBalance: the money is not there; likewise
            KeyBudgetExhausted and BalanceOnHold.
        :raises StoreUnavailable: a store cannot answer.
        """
        prompt_tokens = estimate_prompt(request.body)
        bound = self._output_bound(request, model)
        with self._places().taken(call.threads), self._scope():
            grant = self._acquire(call, caller, prompt_tokens + bound * request.n)
            try:
                draft = _draft(call, caller, model, prompt_tokens)
                affordable = self._hold(call, draft, caller, bound, request.n)
            except BaseException:
                # A limiter that fails now must not hide why the call was refused.
                with _logged(call, "rate limiter"):
                    self._limiter.cancel(grant)
                raise
        return Admission(model, grant, draft, affordable, affordable < bound)

    def renew(self, call: Call, admission: Admission, usage: Usage) -> bool:
        """Prolong what the call has by one lease; ``usage`` so far is its floor. False if
        that is to be tried again soon.

        :raises InsufficientBalance: the money does not reach any further.
        :raises HoldLost: the ledger has given the call up: it must end.
        """
        with self._scope():
            # Money does not lapse because limits cannot be reached.
            with _logged(call, "rate limiter"):
                self._limiter.renew(admission.grant)
            with _logged(call, "ledger"):
                self._ledger.checkpoint(admission.entry(call, usage), lease=self._lease)
                return True
        return False

    def close(self, call: Call, admission: Admission, usage: Usage) -> None:
        """Settle money and tokens and free the slot. Once a call.

        Nothing is raised: the caller has their answer. What a failing ledger does not
        settle now is settled when it can be; what a failing limiter does not free comes
        back when its lease is over.
        """
        with self._scope():
            with _logged(call, "ledger"):
                call.cost = self._settlements.settle(admission.entry(call, usage))
            with _logged(call, "rate limiter"):
                self._limiter.settle(admission.grant, usage.total_tokens)

    def retry_settlements(self) -> int:
        """Try once more to settle what could not be; how many calls are left."""
        return self._settlements.retry()

    def leave(self) -> None:
        """Free the place of a call whose thread is done with it. Once a call."""
        self._places().leave()

    # --- the places ---------------------------------------------------------

    def drain(self) -> None:
        """From now on this process takes no new calls; those under way run on."""
        self._places().drain()

    @property
    def is_draining(self) -> bool:
        """Whether new calls are turned away, however much room there is."""
        return self._places().is_draining

    @property
    def calls(self) -> int:
        """How many calls run in this process."""
        return self._places().count

    # --- the grant ----------------------------------------------------------

    def _acquire(self, call: Call, caller: Caller, tokens: int) -> Grant:
        try:
            with store_errors("rate limiter"):
                grant = self._limiter.acquire(caller.account.name, self._claims(caller), tokens)
        except RateLimitExceeded as error:
            call.limits = error.figures
            raise _advised(error, self._upgrade_url) from None
        call.limits = grant.status
        return grant

    def _claims(self, caller: Caller) -> list[Claim]:
        account, key = caller.account, caller.key
        limits = account_limits(account, self._tiers)
        enforced = account.limits is not None or account.tier not in self._unenforced
        claims = [Claim(f"account:{account.name}", limits, enforced)]
        if key is not None and key.limits is not None:
            claims.append(Claim(f"key:{key.id}", key.limits))
        return claims

    def _output_bound(self, request: ChatRequest, model: Model) -> int:
        bound = request.max_tokens or self._default_output
        return min(bound, model.max_output) if model.max_output else bound

    # --- the hold -----------------------------------------------------------

    def _hold(self, call: Call, draft: Entry, caller: Caller, bound: int, n: int) -> int:
        """How many tokens of output, up to ``bound``, are now paid for."""
        if draft.prepaid and call.several_workers and self._one_process_money:
            raise _out_of_order(
                "balances are kept in memory, but several worker processes run and each would "
                "have its own: keep keys and money in a database, run one process, or set "
                "allow_memory_ledger"
            )
        prompt = draft.prompt_tokens * draft.input_price
        per_token = n * draft.output_price
        most = prompt + per_token * bound
        try:
            with store_errors("ledger"):
                held = self._ledger.hold(
                    draft,
                    least=prompt + per_token * min(LEAST_OUTPUT, bound),
                    most=most,
                    lease=self._lease,
                    budget=caller.key.budget if caller.key else None,
                    period=caller.key.period if caller.key else None,
                )
        except (InsufficientBalance, KeyBudgetExhausted) as error:
            raise _advised(error, self._top_up_url) from None
        return bound if held >= most else (held - prompt) // per_token


def account_limits(account: Account, tiers: Mapping[str, Limits]) -> Limits:
    """The account's own limits, or those of its tier.

    :raises StoreUnavailable: there is no such tier.
    """
    limits = account.limits or tiers.get(account.tier)
    if limits is None:
        raise _out_of_order(
            f"account {account.name!r} is of tier {account.tier!r}, which the setting "
            "'tiers' does not have"
        )
    return limits


def _draft(call: Call, caller: Caller, model: Model, prompt_tokens: int) -> Entry:
    """The ledger's row as it stands if this worker dies now."""
    price = model.price
    return Entry(
        call.request_id,
        caller.account.name,
        key=caller.key.id if caller.key else None,
        model=model.id,
        provider=model.routes[0].provider,
        input_price=price.input,
        output_price=price.output,
        cached_price=price.cached,
        prepaid=caller.account.prepaid,
        prompt_tokens=prompt_tokens,
        outcome=ABANDONED,
    )


def _out_of_order(detail: str) -> StoreUnavailable:
    return StoreUnavailable(
        "The service cannot check your account at the moment.", detail=detail, retryable=False
    )


def _advised(error: APIError, url: str | None) -> APIError:
    """``error`` with the address where its reader can help themselves."""
    if url is not None:
        error.message = f"{error.message} See {url}."
    return error


class _logged:  # used as contextlib.suppress is, and a class for its speed
    """Has a failing store end no call that is under way: it is a line in the log."""

    __slots__ = ("_call", "_part")

    def __init__(self, call: Call, part: str) -> None:
        self._call = call
        self._part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception) or isinstance(error, InsufficientBalance | HoldLost):
            return False
        # The text of a store's error may hold its password; a trace is for debugging.
        log.error(
            "%s: the %s failed on a call under way: %s",
            self._call.request_id,
            self._part,
            type(error).__name__,
            exc_info=log.isEnabledFor(logging.DEBUG),
        )
        return True
