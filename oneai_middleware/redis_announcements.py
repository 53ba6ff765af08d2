"""Announcements through a channel of Redis."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from .announcements import Announcements, Hear
from .errors import StoreUnavailable
from .per_process import PerProcess
from .redis_server import RedisServer

log = logging.getLogger("oneai_middleware.announcements")

ROUND = 1.0
"""Seconds after which a listener sees whether Redis is still there, and anybody who wants
to hear."""


class RedisAnnouncements(Announcements):
    """Messages on the channel ``channel`` of ``server``."""

    def __init__(self, server: RedisServer, channel: str) -> None:
        self._server = server
        self._channel = channel
        # By whose method they tell: one is enough for each.
        self._listeners: PerProcess[weakref.WeakKeyDictionary[object, _Listener]] = PerProcess(
            weakref.WeakKeyDictionary
        )

    def say(self, message: str) -> None:
        try:
            with self._server.errors():
                self._server.client().publish(self._channel, message)
        except StoreUnavailable as error:
            log.warning("a change of keys takes effect elsewhere after seconds: %s", error.detail)

    def attend(self, hear: Hear) -> None:
        owner, listeners = cast(MethodType, hear).__self__, self._listeners()
        if owner in listeners:
            return
        listener = _Listener(self._server, self._channel, hear)
        if listeners.setdefault(owner, listener) is not listener:  # of several threads, one
            return
        try:
            threading.Thread(target=listener.run, name="oneai-announcements", daemon=True).start()
        except RuntimeError:  # no more threads to be had; whoever comes next tries again
            del listeners[owner]


class _Listener:
    """Listens to one channel for somebody, for as long as they are there."""

    def __init__(self, server: RedisServer, channel: str, hear: Hear) -> None:
        self._server = server
        self._channel = channel
        self._wanted: Callable[[], Hear | None] = weakref.WeakMethod(hear)
        self._is_lost = False

    def run(self) -> None:
        while self._wanted() is not None:
            try:
                with self._server.errors(), self._server.listening(self._channel) as subscription:
                    self._hear_all(subscription)
            except StoreUnavailable as error:
                self._note_lost(error)
                time.sleep(ROUND)

    def _hear_all(self, subscription: Any) -> None:
        is_asked = False
        while self._wanted() is not None:
            received = subscription.get_message(timeout=ROUND)
            if received is not None:
                self._pass_on(received)
            elif is_asked:
                raise TimeoutError  # a connection may be dead without anybody saying so
            else:
                subscription.ping()
            is_asked = received is None

    def _pass_on(self, received: Any) -> None:
        # Held for this moment only: who is held is wanted.
        hear = self._wanted() or (lambda message: None)
        if received["type"] == "subscribe":  # from now on; there may have been some before
            self._note_regained()
            hear(None)
        elif received["type"] == "message":
            hear(received["data"].decode(errors="replace"))

    def _note_lost(self, error: StoreUnavailable) -> None:
        if not self._is_lost:
            log.warning("changes of keys take effect after seconds here: %s", error.detail)
        self._is_lost = True

    def _note_regained(self) -> None:
        if self._is_lost:
            log.warning("changes of keys take effect at once again")
        self._is_lost = False
