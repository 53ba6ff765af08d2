"""A model of any shipped provider, which the scripted one plays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hello there"}]


class Asking:
    """Asks the scripted provider under the name of a shipped one, and so in its dialect.

    ``gateway`` is the one that was asked last, ``sent`` what reached the provider.
    """

    def __init__(
        self, make_gateway: Any, provider: Any, headers: Any, send: Callable[..., Any]
    ) -> None:
        self.gateway: Any = None
        self._gateways: dict[str, Any] = {}
        self._make_gateway = make_gateway
        self._provider = provider
        self._headers = headers
        self._send = send

    def __call__(
        self,
        name: str,
        *,
        stream: bool = False,
        upstream: str = "up",
        dialect: Any = None,
        defaults: Mapping[str, Any] | None = None,
        messages: Any = HELLO,
        **fields: Any,
    ) -> Any:
        row = {"base_url": self._provider.url, "api_key": "sk-upstream-secret"}
        if dialect is not None:
            row["dialect"] = dialect
        model = {"routes": [f"{name}/{upstream}"], "input": "1", "output": "2"}
        settings = {
            "providers": {name: row},
            "models": {"bot": {**model, "defaults": defaults or {}}},
        }
        self.gateway = self._gateways.get(str(settings)) or self._make_gateway(**settings)
        self._gateways[str(settings)] = self.gateway
        body = {"model": "bot", "messages": messages, "stream": stream, **fields}
        reply = self._send(self.gateway, "POST", "/v1/chat/completions", body, self._headers)
        reply.read()
        return reply

    @property
    def sent(self) -> dict[str, Any]:
        """The last body that reached the provider, less what every call has."""
        body = dict(self._provider.turns[-1].json)
        for name in ("model", "stream", "stream_options"):
            body.pop(name, None)
        if body["messages"] == HELLO:
            del body["messages"]
        return body


@pytest.fixture
def ask_as(make_gateway: Any, provider: Any, headers: Any, send: Any) -> Asking:
    return Asking(make_gateway, provider, headers, send)
