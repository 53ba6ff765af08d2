"""A chat request as one kind of provider takes it. Pure; one step a difference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ....protocol.chat import BOUNDS, Adjustment
from .base import Dialect

Object = dict[str, Any]
Notes = dict[str, Adjustment]
Change = Callable[[Object, str], Object]
"""Makes of an object, and the name of a field it has, another object."""

_PARTS = re.compile(r"\[\]|[^.\[\]]+")
# What a provider does anyway: nobody misses it when it is not sent.
_USUAL: Mapping[str, Any] = {
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
}
# What callers say of thinking, in the words of any provider.
_WISHES: Mapping[str, Mapping[str | bool, bool]] = {
    "thinking.type": {"enabled": True, "adaptive": True, "disabled": False},
    "enable_thinking": {True: True, False: False},
    "chat_template_kwargs.enable_thinking": {True: True, False: False},
    "reasoning_effort": {"none": False},
}


def adapt(dialect: Dialect, body: Mapping[str, Any], *, stream: bool) -> tuple[Object, Notes]:
    """``body`` as the provider takes it, as a stream or in one piece, and what became
    of those of the caller's parameters that could not be sent as they are.

    ``body`` is left as it is. With a shipped dialect, to adapt what has been adapted
    changes nothing.
    """
    notes: Notes = {}
    adapted = dict(body)
    for step in _STEPS:
        adapted = step(dialect, adapted, notes)
    return _streamed(dialect, adapted, stream), notes


# --- messages ---------------------------------------------------------------


def _without_nulls(dialect: Dialect, body: Object, notes: Notes) -> Object:
    # The SDKs replay an answer with a null for every field it did not have.
    return _with_messages(
        body,
        lambda message: {n: v for n, v in message.items() if v is not None or n == "content"},
    )


def _with_roles(dialect: Dialect, body: Object, notes: Notes) -> Object:
    def named(message: Object) -> Object:
        role = message.get("role")
        other = dialect.roles.get(role) if isinstance(role, str) else None
        return message if other is None else {**message, "role": other}

    return _with_messages(body, named)


def _with_messages(body: Object, change: Callable[[Object], Object]) -> Object:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    changed = [change(each) if isinstance(each, dict) else each for each in messages]
    return {**body, "messages": changed}


# --- parameters -------------------------------------------------------------


def _dropped(dialect: Dialect, body: Object, notes: Notes) -> Object:
    for path in (*dialect.drop, *_dropped_for(dialect, body.get("model"))):
        rest = _without(body, path)
        if rest is not body and not (path in _USUAL and body[path] == _USUAL[path]):
            notes[path] = "dropped"
        body = rest
    return body


def _dropped_for(dialect: Dialect, model: Any) -> Iterable[str]:
    for pattern, paths in dialect.drop_for.items():
        if fnmatchcase(str(model), pattern):
            return paths
    return ()


def _of_known_values(dialect: Dialect, body: Object, notes: Notes) -> Object:
    for name, known in dialect.values.items():
        if name in body and body[name] not in known:
            notes[name] = "dropped"
            body = _without(body, name)
    return body


def _greedy(dialect: Dialect, body: Object, notes: Notes) -> Object:
    if not dialect.greedy or _number(body, "temperature") != 0:
        return body
    if not dialect.greedy.keys().isdisjoint(body):
        return body
    return {**_without(body, "temperature"), **dialect.greedy}


def _within_ranges(dialect: Dialect, body: Object, notes: Notes) -> Object:
    for name, (low, high) in dialect.ranges.items():
        value = _number(body, name)
        if value is not None and not low <= value <= high:
            notes[name] = "changed"
            body = {**body, name: low if value < low else high}
    return body


def _of_right_size(dialect: Dialect, body: Object, notes: Notes) -> Object:
    for name, (least, most) in dialect.sizes.items():
        value = body.get(name)
        if isinstance(value, str) and not least <= len(value) <= most:
            notes[name] = "dropped"
            body = _without(body, name)
    return body


def _few_stops(dialect: Dialect, body: Object, notes: Notes) -> Object:
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else given
    if not dialect.stops or not isinstance(stops, list):
        return body
    if len(stops) > dialect.stops:
        notes["stop"] = "changed"
    return {**body, "stop": stops[: dialect.stops]}


def _renamed(dialect: Dialect, body: Object, notes: Notes) -> Object:
    for path, other in dialect.rename.items():
        body = _changed(body, path, _naming(other))
    return body


def _naming(other: str) -> Change:
    """What calls a field ``other``, unless there is one of that name."""

    def named(holder: Object, name: str) -> Object:
        return {other: holder[name], **{n: v for n, v in holder.items() if n != name}}

    return named


def _one_length(dialect: Dialect, body: Object, notes: Notes) -> Object:
    given = [body[name] for name in BOUNDS if name in body]
    if not dialect.length or not given:
        return body
    rest = {name: value for name, value in body.items() if name not in BOUNDS}
    return {**rest, dialect.length: given[0]}


def _thinking(dialect: Dialect, body: Object, notes: Notes) -> Object:
    wishes = dict(_wishes(body)) if dialect.thinking else {}
    if not wishes:
        return body
    # A model's defaults stand before what the caller says: the last one counts.
    wish = list(wishes.values())[-1]
    spelled = dialect.thinking["on" if wish else "off"]
    for path in wishes:
        root = path.partition(".")[0]
        body = _without(body, path)
        if root not in spelled or not body.get(root):
            if body.get(root):  # what else it says means nothing there
                notes[root] = "changed"
            body = _without(body, root)
    for name, value in spelled.items():
        if not isinstance(value, Mapping) and body.get(name, value) != value:
            notes[name] = "changed"
    return _merged(body, spelled)


def _wishes(body: Object) -> Iterator[tuple[str, bool]]:
    """What ``body`` says of thinking, by path, in its own order."""
    for name, value in body.items():
        for path, meanings in _WISHES.items():
            root, _, key = path.partition(".")
            if root == name:
                said = _at(value, key) if key else value
                if isinstance(said, str | bool) and said in meanings:
                    yield path, meanings[said]


def _with_defaults(dialect: Dialect, body: Object, notes: Notes) -> Object:
    return {**dialect.defaults, **body}


def _streamed(dialect: Dialect, body: Object, stream: bool) -> Object:
    given = body.get("stream_options")
    options = dict(given) if stream and isinstance(given, Mapping) else {}
    options.pop("include_usage", None)
    if not dialect.obfuscation:
        options.pop("include_obfuscation", None)
    if stream and dialect.stream_usage:
        options["include_usage"] = True
    rest = {**_without(body, "stream_options"), "stream": stream}
    return {**rest, "stream_options": options} if options else rest


# In this order: names and values are the caller's until they are renamed.
_STEPS: tuple[Callable[[Dialect, Object, Notes], Object], ...] = (
    _without_nulls,
    _with_roles,
    _dropped,
    _of_known_values,
    _greedy,
    _within_ranges,
    _of_right_size,
    _few_stops,
    _renamed,
    _one_length,
    _thinking,
    _with_defaults,
)


# --- objects and paths ------------------------------------------------------


def _without(body: Object, path: str) -> Object:
    """``body`` less what ``path`` leads to; ``body`` itself where that is nothing."""

    def removed(holder: Object, name: str) -> Object:
        return {n: v for n, v in holder.items() if n != name}

    return _changed(body, path, removed)


def _changed(body: Object, path: str, change: Change) -> Object:
    """``body`` with ``change`` done to every object that holds what ``path`` leads to;
    ``body`` itself where there is none."""
    changed: Object = _changed_below(body, _PARTS.findall(path), change)
    return changed


def _changed_below(value: Any, path: Sequence[str], change: Change) -> Any:
    first, *rest = path
    if first == "[]":
        if not isinstance(value, list):
            return value
        items = [_changed_below(item, rest, change) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    if not isinstance(value, dict) or first not in value:
        return value
    if not rest:
        return change(value, first)
    below = _changed_below(value[first], rest, change)
    return value if below is value[first] else {**value, first: below}


def _merged(body: Object, more: Mapping[str, Any]) -> Object:
    """``body`` with the fields of ``more``, and objects in both made one."""
    merged = dict(body)
    for name, value in more.items():
        old = body.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = {**old, **value}
        merged[name] = value
    return merged


def _at(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _number(body: Object, name: str) -> float | None:
    value = body.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
