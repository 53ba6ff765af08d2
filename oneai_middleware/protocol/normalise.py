"""The deviations of providers, mended on the way out. Pure: no I/O, no clock.

The callers' SDKs check nothing and merge deltas blindly: a role sent twice becomes
``assistantassistant``, an id sent twice a tool call nobody can answer. What is
repaired here is what breaks them; what is merely unknown passes untouched.
"""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..errors import BackendUnavailable
from . import json
from .chat import OUTPUT, Chunk, Completion, Item, text_of
from .usage import Usage

Object = dict[str, Any]

_OURS = {"id", "object", "created", "model", "choices", "usage", "error"}
# They accompany a usage-only chunk and are no reason to send it on.
_ESCORT = {"system_fingerprint", "service_tier", "obfuscation"}
_PLAIN = {"index", "delta", "finish_reason", "logprobs"}
_REASONS: dict[str, str | None] = {
    "": None,
    "null": None,
    "sensitive": "content_filter",
    "model_context_window_exceeded": "length",
}


class StreamNormaliser:
    """Turns a backend's items into the chunks that one caller may see.

    Every chunk carries the same ``id``, ``created`` (Unix seconds) and ``model``.
    Usage is taken out wherever a provider puts it; with ``include_usage`` it comes
    back as the closing chunk, and every other chunk says ``usage: null``.
    """

    def __init__(self, model: str, id: str, created: int, include_usage: bool) -> None:
        self._ours = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._include_usage = include_usage
        self._choices: dict[int, _Choice] = {}

    def chunk(self, item: Item) -> list[Chunk]:
        """The chunks to send for ``item``, often one, sometimes none. ``item`` is
        left as it is.

        :raises BackendUnavailable: a tool call's arguments are not JSON.
        """
        if item is None or isinstance(item, Usage):
            return []
        if isinstance(item, str):
            item = Chunk.text(item)
        pieces = [
            self._choice(raw, position).pieces(raw) for position, raw in enumerate(item.choices)
        ]
        chunks = [
            self._wrap([piece for piece in layer if piece is not None])
            for layer in itertools.zip_longest(*pieces)
        ]
        extras = _extras(item)
        if not chunks and self._include_usage and any(_without(extras, _ESCORT).values()):
            chunks = [self._wrap([])]
        if chunks:
            chunks[0].update(extras)
        return chunks

    def more(self, item: Item) -> Chunk | None:
        """The chunk to send for an ``item`` that does nothing but say more of one answer, as
        almost all do; ``None`` for any other. It is the one that :meth:`chunk` gives, sooner.
        """
        if type(item) is not Chunk or not self._goes_on(item):
            return None
        chunk = Chunk(self._ours)
        chunk.update(item)
        chunk.update(self._ours)
        if self._include_usage:
            chunk["usage"] = None
        else:
            chunk.pop("usage", None)
        return chunk

    def finish(self, usage: Usage, reason: str = "stop") -> list[Chunk]:
        """The chunks still owed when the answer is over.

        They are the finish_reason ``reason`` for each answer without one (an empty answer is
        made up where there is none) and, if asked for, the closing usage.
        """
        chunks = [] if self._choices else self.chunk("")
        for index, choice in self._choices.items():
            if not choice.finished:
                chunks += self.chunk(Chunk.finish(reason, index=index))
        if self._include_usage:
            chunks.append(Chunk(self._ours, choices=[], usage=usage.as_dict()))
        return chunks

    def _goes_on(self, item: Chunk) -> bool:
        choices = item.get("choices")
        if type(choices) is not list or len(choices) != 1:
            return False
        if item.get("usage") is not None or "x_groq" in item or "error" in item:
            return False
        raw = choices[0]
        delta = raw.get("delta") if type(raw) is dict and raw.keys() <= _PLAIN else None
        if type(delta) is not dict or len(delta) != 1 or raw.get("finish_reason", "") is not None:
            return False
        index, said = raw.get("index"), delta.get("content", delta.get("reasoning_content"))
        choice = self._choices.get(index) if type(index) is int else None
        return choice is not None and choice.has_output and type(said) is str

    def _choice(self, raw: Object, position: int) -> _Choice:
        index = _index(raw.get("index"), position)
        if index not in self._choices:
            self._choices[index] = _Choice(index)
        return self._choices[index]

    def _wrap(self, choices: list[Object]) -> Chunk:
        chunk = Chunk(self._ours, choices=choices)
        if self._include_usage:
            chunk["usage"] = None
        return chunk


class _Choice:
    """What has been sent of one answer of a stream."""

    def __init__(self, index: int) -> None:
        self.finished = False
        self.has_output = False
        self._index = index
        self._role_sent = False
        self._calls = _Calls()

    def pieces(self, raw: Object) -> list[Object]:
        """``raw`` as choices that must travel in successive chunks; none if it
        says nothing."""
        delta = self._delta(raw)
        layers = self._calls.layers(delta.pop("tool_calls", None))
        if layers:
            delta["tool_calls"] = layers[0]
        self.has_output = self.has_output or any(delta.get(name) for name in OUTPUT)
        if not self._role_sent:
            self._role_sent, delta = True, {"role": "assistant", **delta}
        reason = self._reason(raw)
        extras = _without(raw, {"index", "delta", "message", "finish_reason", "usage"})
        if not delta and reason is None and all(value is None for value in extras.values()):
            return []
        deltas = [delta, *({"tool_calls": layer} for layer in layers[1:])]
        pieces: list[Object] = [
            {"index": self._index, "delta": d, "finish_reason": None} for d in deltas
        ]
        pieces[0].update(extras)
        pieces[-1]["finish_reason"] = reason
        return pieces

    def _delta(self, raw: Object) -> Object:
        delta = raw.get("delta")
        # A whole message ends some streams, and mostly repeats what has been sent.
        if not delta and not self.has_output:
            delta = raw.get("message")
        if not isinstance(delta, Mapping):
            return {}
        delta = _without(delta, {"role"})
        if "content" in delta:
            delta["content"] = _content(delta["content"])
        return delta

    def _reason(self, raw: Object) -> str | None:
        reason = _finish_reason(raw.get("finish_reason"), bool(self._calls))
        if self.finished:
            return None
        self.finished = reason is not None
        return reason


class _Calls:
    """The tool calls of one answer of a stream, as far as they have been sent."""

    def __init__(self) -> None:
        self._indexes: dict[str, int] = {}
        self._named: dict[int, bool] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._named)

    def layers(self, raw: Any) -> list[list[Object]]:
        """The entries of ``raw``, repaired, in lists of which none names an index
        twice: clients lose the second of two in one chunk."""
        layers: list[list[Object]] = []
        seen: Counter[int] = Counter()
        for entry in _objects(raw):
            index = self._place(entry)
            repaired = self._repair(entry, index)
            if not repaired:
                continue
            if seen[index] == len(layers):
                layers.append([])
            layers[seen[index]].append({"index": index, **repaired})
            seen[index] += 1
        return layers

    def _place(self, raw: Object) -> int:
        id = _text(raw.get("id"))
        index = self._indexes.get(id, -1) if id else self._last
        named_anew = not id and _text(_function(raw).get("name")) and self._named.get(index)
        if index < 0 or named_anew:
            index = max(self._named, default=-1) + 1
        index = _index(raw.get("index"), index)
        if id:
            self._indexes.setdefault(id, index)
        self._last = index
        return index

    def _repair(self, raw: Object, index: int) -> Object:
        function = _without(_function(raw), {"name", "arguments"})
        name, arguments = _text(_function(raw).get("name")), _function(raw).get("arguments")
        entry: Object = {}
        opening = index not in self._named
        if opening:
            entry = _identity(raw)
        if name and not self._named.get(index):
            function["name"] = name
        if arguments is not None or (opening and entry["type"] == "function"):
            function["arguments"] = _arguments(arguments)
        self._named[index] = self._named.get(index, False) or bool(name)
        if function:
            entry["function"] = function
        return {**entry, **_without(raw, {"index", "id", "type", "function"})}


def normalise_completion(
    raw: Completion, *, model: str, id: str, created: int, usage: Usage
) -> Completion:
    """``raw`` as the caller may see it, with our ``id``, ``model``, ``created``
    (Unix seconds) and the ``usage`` that is billed. ``raw`` is left as it is.

    :raises BackendUnavailable: there is no answer in it.
    """
    choices = [
        _whole_choice(choice, position)
        for position, choice in enumerate(raw.choices)
        if isinstance(choice.get("message"), Mapping)
    ]
    if not choices:
        raise BackendUnavailable("an answer without choices")
    ours = {"id": id, "object": "chat.completion", "created": created, "model": model}
    extras = _without(raw, _OURS)
    return Completion({**ours, **extras, "choices": choices, "usage": usage.as_dict()})


def _extras(item: Chunk) -> Object:
    """The fields of a chunk that are the provider's own, less Groq's place for usage."""
    extras = _without(item, _OURS)
    if isinstance(extras.get("x_groq"), dict):
        extras["x_groq"] = _without(extras["x_groq"], {"usage"})
    return extras


def _whole_choice(raw: Object, position: int) -> Object:
    message = {
        **_without(raw["message"], {"tool_calls"}),
        "role": "assistant",
        "content": _content(raw["message"].get("content")),
    }
    calls = [_whole_call(call) for call in _objects(raw["message"].get("tool_calls"))]
    if calls:
        message["tool_calls"] = calls
    reason = _finish_reason(raw.get("finish_reason"), bool(calls))
    return {
        "logprobs": None,
        **_without(raw, {"usage"}),
        "index": _index(raw.get("index"), position),
        "message": message,
        "finish_reason": reason or ("tool_calls" if calls else "stop"),
    }


def _whole_call(raw: Object) -> Object:
    call = {**raw, **_identity(raw)}
    if call["type"] == "function":
        function = _function(raw)
        # A tool without parameters may come with nothing; clients parse what they get.
        call["function"] = {**function, "arguments": _arguments(function.get("arguments")) or "{}"}
    return call


def _identity(raw: Object) -> Object:
    """A tool call's id, without which no result can be handed in, and its type."""
    return {
        "id": _text(raw.get("id")) or f"call_{secrets.token_hex(16)}",
        "type": _text(raw.get("type")) or "function",
    }


def _finish_reason(raw: Any, has_calls: bool) -> str | None:
    if not isinstance(raw, str):
        return None
    if raw == "stop" and has_calls:
        return "tool_calls"
    return _REASONS.get(raw, raw)


def _arguments(raw: Any) -> str:
    if raw is None or isinstance(raw, str):
        return raw or ""
    try:
        return json.encode(raw).decode()
    except json.MalformedJSON as error:
        raise BackendUnavailable("a tool call's arguments are not JSON") from error


def _content(raw: Any) -> str | None:
    return None if raw is None else text_of(raw)


def _function(raw: Object) -> Mapping[str, Any]:
    function = raw.get("function")
    return function if isinstance(function, Mapping) else {}


def _index(raw: Any, default: int) -> int:
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0 else default


def _text(raw: Any) -> str | None:
    return raw if isinstance(raw, str) and raw else None


def _objects(raw: Any) -> list[Object]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []


def _without(raw: Mapping[str, Any], names: set[str]) -> Object:
    return {name: value for name, value in raw.items() if name not in names}
