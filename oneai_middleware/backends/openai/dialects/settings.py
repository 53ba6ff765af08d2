"""The ``dialect`` option of a provider's row: a name, or a table of fields."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from ....errors import ConfigurationError, unknown_name
from ....protocol import json
from ....protocol.chat import BOUNDS
from .base import Cause, Dialect
from .shipped import SHIPPED

Reader = Callable[[Any], Any]
"""Gives the value of a field; raises a ValueError for one of another shape."""

_PATH = re.compile(r"\w+((\[\])?\.\w+)*", re.ASCII)
# The gateway's own fields: without them, or with others, there is no call.
_OURS = frozenset({"model", "messages", "stream", "stream_options"})
# What the caller's money was held for: not to be said by anybody else.
_PAID = frozenset({"n", *BOUNDS})


def read_dialect(value: Any) -> Dialect:
    """The dialect that ``value`` asks for: a shipped one by its name, or a table of
    fields to change over the one that its ``name`` says.

    :raises ConfigurationError: naming the field and the fix.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            "dialect: the name of one, such as 'deepseek', or a table of fields to change"
        )
    fields = dict(value)
    name = fields.pop("name", "generic")
    if name not in list(SHIPPED):
        raise ConfigurationError(f"dialect: {unknown_name('name', str(name), SHIPPED)}")
    changed = {field: _read_field(field, value) for field, value in fields.items()}
    return dataclasses.replace(SHIPPED[name], **changed)


def _read_field(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        raise ConfigurationError(f"dialect: {unknown_name('field', str(name), ['name', *_FIELDS])}")
    read, shape = _FIELDS[name]
    try:
        return read(value)
    except ValueError:
        raise ConfigurationError(f"dialect: {name} is {shape}") from None


# --- shapes -----------------------------------------------------------------


def _is(fits: Callable[[Any], Any]) -> Reader:
    def read(value: Any) -> Any:
        if not fits(value):
            raise ValueError
        return value

    return read


def _list(item: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError
        return tuple(item(each) for each in value)

    return read


def _table(name: Reader, item: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError
        return {name(key): item(each) for key, each in value.items()}

    return read


def _range(number: Reader) -> Reader:
    def read(value: Any) -> Any:
        low, high = _list(number)(value)
        if not low <= high:  # nor with a NaN
            raise ValueError
        return low, high

    return read


def _sayable(value: Any) -> Any:
    json.encode(value)
    return value


def _sign(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    return str(value)


def _switch(value: Any) -> Any:
    table = _table(_is(lambda key: key in ("on", "off")), _table(_free, _sayable))(value)
    if len(table) == 1:
        raise ValueError
    return table


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_flag = _is(lambda value: isinstance(value, bool))
_count = _is(_is_count)
_text = _is(lambda value: isinstance(value, str))
_path = _is(lambda value: isinstance(value, str) and _PATH.fullmatch(value) and value not in _OURS)
_droppable = _is(lambda value: _path(value) not in BOUNDS)
_field = _is(lambda value: isinstance(value, str) and value and value not in _OURS)
_free = _is(lambda value: isinstance(value, str) and value and value not in _OURS | _PAID)

_FIELDS: Mapping[str, tuple[Reader, str]] = {
    "drop": (_list(_droppable), "a list of paths, such as ['seed', 'messages[].name']"),
    "drop_for": (
        _table(_text, _list(_droppable)),
        "a table of patterns of model ids to lists, such as {'o3*': ['temperature']}",
    ),
    "values": (
        _table(_free, _list(_sayable)),
        "a table of fields to lists of values, such as {'tool_choice': ['auto']}",
    ),
    "ranges": (
        _table(_free, _range(_is(_is_number))),
        "a table of fields to two numbers, such as {'temperature': [0, 1]}",
    ),
    "sizes": (
        _table(_field, _range(_count)),
        "a table of fields to two numbers of characters, such as {'user': [6, 128]}",
    ),
    "stops": (_count, "a number of stop strings, 0 for any"),
    "greedy": (_table(_free, _sayable), "a table of fields, such as {'do_sample': False}"),
    "rename": (
        _table(_path, _free),
        "a table of paths to names, such as {'user': 'user_id'}",
    ),
    "length": (
        _is(lambda value: value in ("", *BOUNDS)),
        "'max_tokens', 'max_completion_tokens', or '' for the caller's own",
    ),
    "roles": (_table(_text, _text), "a table of roles, such as {'developer': 'system'}"),
    "thinking": (
        _switch,
        "a table of what to send for 'on' and for 'off', such as "
        "{'on': {'enable_thinking': True}, 'off': {'enable_thinking': False}}",
    ),
    "defaults": (
        _table(_free, _sayable),
        "a table of fields, such as {'reasoning_split': True}",
    ),
    "stream_usage": (_flag, "True or False"),
    "obfuscation": (_flag, "True or False"),
    "folds": (_flag, "True or False"),
    "reasoning": (_text, "the name of a field, such as 'reasoning'"),
    "causes": (
        _table(_sign, _is(lambda value: value in get_args(Cause))),
        f"a table of signs to causes, which are {', '.join(map(repr, get_args(Cause)))}",
    ),
}
