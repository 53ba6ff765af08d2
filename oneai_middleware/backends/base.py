"""The backend family: what a plug-in author implements."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from typing import Any, get_args

from ..errors import ConfigurationError, unknown_name
from ..protocol.chat import ChatRequest, Completion, Item
from ..protocol.gather import gather


class Backend:
    """Speaks one provider's protocol.

    Only :meth:`stream` is required. One backend object serves many threads.
    """

    def __init__(self, **options: Any) -> None:
        """Take the provider's settings, less those the gateway keeps for itself.

        :raises ConfigurationError: for a missing, unknown or malformed option,
            naming it.
        """
        if options:
            raise ConfigurationError(
                f"{type(self).__name__}: "
                + unknown_name("option", sorted(options)[0], _known_options(type(self)))
            )

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        """The answer to ``request``, piece by piece.

        ``request.model`` is the provider's own model id. A refusal is raised
        before the first item. The iterator may have a ``cancel()`` that any thread
        can call, or use ``request.cancellation``; without either, the gateway
        stops asking, frees what the call held and lets the thread run out.

        :raises BackendError: one of its children; see :mod:`oneai_middleware.errors`.
        :raises InvalidRequest: the caller's own parameter is at fault.
        """
        raise NotImplementedError

    def complete(self, request: ChatRequest) -> Completion:
        """The answer in one piece. The default gathers :meth:`stream`."""
        return gather(running(self, request))

    def check(self) -> None:
        """Can the provider be reached, and does it accept us? For ``oneai check``.

        :raises BackendError: saying in ``detail`` what is wrong.
        """

    def close(self) -> None:
        """Let go of connections; the next call opens new ones.

        Nothing may depend on its being called.
        """


_KINDS = frozenset(get_args(Item))


def _known_options(backend: type[Backend]) -> set[str]:
    """What may stand in a provider's row: the gateway's own fields and the backend's."""
    known = {"backend", "timeouts", "cooldown"}
    for kind in backend.__mro__:
        init = vars(kind).get("__init__")
        if inspect.isfunction(init):
            parameters = inspect.signature(init).parameters.values()
            known |= {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    return known


def running(backend: Backend, request: ChatRequest) -> Generator[Item, None, None]:
    """The backend's stream, cancelled with the call and closed in any case.

    :raises TypeError: the stream holds something that is no item.
    """
    iterator = backend.stream(request)
    if hasattr(iterator, "cancel"):
        request.cancellation.on_cancel(iterator.cancel)
    try:
        for item in iterator:
            if type(item) not in _KINDS and not isinstance(item, Item):
                raise TypeError(f"{type(item).__name__} is no chunk, text or usage")
            yield item
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
