"""The record of one call, filled in as it goes down the road. No logic."""

from __future__ import annotations

from dataclasses import dataclass

from .accounts import Caller
from .attempt import Attempt
from .catalog import Model
from .protocol.chat import ChatRequest
from .protocol.usage import Usage
from .rate_limiters.base import LimitStatus


@dataclass(slots=True)
class Call:
    """One request below the mount, whatever becomes of it.

    ``started``, ``admitted`` and ``ended`` are seconds of the gateway's monotonic clock.
    ``outcome`` is ``"answered"`` or the code of the error that ended it; ``cost``
    is in nano-dollars. ``attempt`` is the one at the route tried last, ``provider``
    its provider's name. ``threads`` is how many requests this process serves at
    once, where the server says.
    """

    request_id: str
    method: str
    path: str
    started: float
    several_workers: bool = False
    threads: int | None = None
    client_request_id: str = ""
    retry: str = ""

    caller: Caller | None = None
    request: ChatRequest | None = None
    model: Model | None = None
    provider: str = ""
    attempt: Attempt | None = None
    limits: LimitStatus | None = None

    status: int = 0
    admitted: float = 0.0
    outcome: str = ""
    usage: Usage | None = None
    cost: int = 0
    ended: float = 0.0
