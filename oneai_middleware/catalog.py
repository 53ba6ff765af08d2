"""Which models there are, who serves them, and at what price.

The shipped models and providers are data, in ``catalog.toml`` beside this file; the
``models`` setting is merged over them field by field.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

from .accounts import Caller, read_dollars
from .errors import ConfigurationError, InvalidRequest, ModelNotFound, unknown_name
from .protocol import json
from .protocol.fields import check_fields
from .protocol.usage import Usage

CREATED = 1767225600
"""``created`` of a model whose row does not say: the start of 2026, in Unix seconds."""

_FIELDS = (
    *("routes", "input", "output", "cached_input", "context", "max_output"),
    *("owned_by", "created", "defaults"),
)
_MILLION = 10**6
# A thousand million tokens at this price still fit the 64-bit integers of a database.
_HIGHEST_PRICE = 10**9
# The gateway's own fields of a request: a default for one would change what was checked.
_NOT_A_DEFAULT = frozenset({"model", "messages", "stream", "stream_options", "n"})


# --- the records ------------------------------------------------------------


class Price(NamedTuple):
    """Nano-dollars per token; ``cached_input`` is ``None`` where cached costs as input."""

    input: int
    output: int
    cached_input: int | None = None

    @classmethod
    def parse(cls, input: Any, output: Any, cached_input: Any = None, *, where: str) -> Price:
        """A price given in dollars per million tokens, as decimal strings.

        ``where`` names the setting in errors.

        :raises ConfigurationError: for a float, for more than three decimals (those
            are not a whole number of nano-dollars per token), a negative or absurd price.
        """
        cached = cached_input
        return cls(
            _per_token(input, f"{where}: input"),
            _per_token(output, f"{where}: output"),
            None if cached is None else _per_token(cached, f"{where}: cached_input"),
        )

    @property
    def cached(self) -> int:
        """Nano-dollars per prompt token that the provider had in its cache."""
        return self.input if self.cached_input is None else self.cached_input

    def cost(self, usage: Usage) -> int:
        """What ``usage`` costs, in nano-dollars, exactly.

        Cached and reasoning tokens are parts of prompt and completion; nothing is
        counted twice.
        """
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.input
            + usage.cached_tokens * self.cached
            + usage.completion_tokens * self.output
        )

    def as_dict(self) -> dict[str, str]:
        """Dollars per million tokens, as strings."""
        prices = {"input": _per_million(self.input), "output": _per_million(self.output)}
        if self.cached_input is not None:
            prices["cached_input"] = _per_million(self.cached_input)
        return prices


class Route(NamedTuple):
    """One way to a model: a configured provider, and the model's id there.

    Ranks are tried in order; among routes of one rank a call goes first to each as
    often as its ``weight`` says.
    """

    provider: str
    upstream: str
    rank: int = 0
    weight: int = 1

    @classmethod
    def parse(cls, text: Any, *, where: str, rank: int = 0, weight: int = 1) -> Route:
        """The route that ``"provider/upstream-id"`` names, split at the first ``/``.

        :raises ConfigurationError: when one of the two is missing.
        """
        provider, _, upstream = text.partition("/") if isinstance(text, str) else ("", "", "")
        if not (provider and upstream):
            raise ConfigurationError(
                f"{where}: {text!r} is not a route; write 'provider/upstream-id', "
                "such as 'deepseek/deepseek-v4-pro'"
            )
        return cls(provider, upstream, rank, weight)

    def __str__(self) -> str:
        return f"{self.provider}/{self.upstream}"


@dataclass(frozen=True, slots=True)
class Model:
    """A model as callers know it.

    ``context`` and ``max_output`` are in tokens, ``None`` where nobody said.
    ``routes`` are tried in order. ``defaults`` are request fields that are sent to
    the provider when the caller gives none of that name.
    """

    id: str
    owned_by: str
    created: int
    context: int | None
    max_output: int | None
    price: Price
    routes: tuple[Route, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """The model object of ``/v1/models``."""
        model: dict[str, Any] = {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": self.owned_by,
            "pricing": self.price.as_dict(),
        }
        if self.context is not None:
            model["context_length"] = self.context
        if self.max_output is not None:
            model["max_output_tokens"] = self.max_output
        return model


class ProviderPreset(NamedTuple):
    """What is known of a provider, so that its row in the settings needs a key at most.

    ``dialect`` is what it does otherwise than others. ``key_variable`` is the
    environment variable that customarily holds the key, ``None`` where it wants none.
    """

    name: str
    base_url: str
    dialect: str
    key_variable: str | None = None


class Catalog(Mapping[str, Model]):
    """The models by id, in the order in which they are listed."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.id: model for model in models}

    def __getitem__(self, id: str) -> Model:
        return self._models[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def find(self, id: str, caller: Caller) -> Model:
        """The model ``id``, for ``caller``.

        :raises ModelNotFound: there is none, or the caller may not use it; the two
            look the same.
        """
        model = self._models.get(id)
        if model is None or not caller.may_use(id):
            raise ModelNotFound(
                f"The model '{_printable(id)}' does not exist or you do not have access to it.",
                param="model",
            )
        return model

    def listed(self, caller: Caller) -> list[Model]:
        """The models that ``caller`` may use."""
        return [model for model in self._models.values() if caller.may_use(model.id)]


# --- what is shipped --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shipped:
    """The contents of ``catalog.toml``: rows of models by id, and provider presets."""

    models: Mapping[str, Mapping[str, Any]]
    providers: Mapping[str, ProviderPreset]


@functools.cache
def read_shipped() -> Shipped:
    """The shipped data, read on first use."""
    file = resources.files(__package__).joinpath("catalog.toml")
    return parse_shipped(file.read_text(encoding="utf-8"))


def parse_shipped(text: str) -> Shipped:
    """The data that ``text``, in TOML, holds.

    :raises ConfigurationError: when two rows of models have the same id.
    """
    import tomllib  # the import of the package does without

    data = tomllib.loads(text)
    models: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(data["models"], 1):
        id = row.pop("id")
        if id in models:
            first = list(models).index(id) + 1
            raise ConfigurationError(
                f"the catalog has {id!r} twice, in rows {first} {_prices(models[id])} and "
                f"{number} {_prices(row)}; ids are unique, remove one"
            )
        models[id] = MappingProxyType(row)
    providers = {name: ProviderPreset(name, **row) for name, row in data["providers"].items()}
    return Shipped(MappingProxyType(models), MappingProxyType(providers))


def presets() -> Mapping[str, ProviderPreset]:
    """The providers that need a key at most, by name."""
    return read_shipped().providers


# --- reading the ``models`` setting -----------------------------------------


def load_catalog(table: Mapping[str, Any], providers: Collection[str]) -> Catalog:
    """The shipped models with those of ``table`` merged over them, field by field.

    ``False`` removes a shipped model. New ones follow in their own order. Of a model
    that ``table`` does not name, the routes whose provider is not one of ``providers``
    are left out, and the model with the last of them; a model it does name is an error.

    :raises ConfigurationError: naming the model, the field and the fix.
    """
    shipped = read_shipped().models
    for id, row in table.items():
        _check_row(id, row, shipped)
    models = []
    for id in (*shipped, *(id for id in table if id not in shipped)):
        if id not in table:
            routes = [text for text in shipped[id]["routes"] if _provider(text) in providers]
            if routes:
                models.append(_read_model(id, {**shipped[id], "routes": routes}, providers))
        elif table[id] is not False:
            models.append(_read_model(id, {**shipped.get(id, {}), **table[id]}, providers))
    return Catalog(models)


def _check_row(id: Any, row: Any, shipped: Mapping[str, Any]) -> None:
    where = f"models[{id!r}]"
    if not isinstance(id, str) or not id or not id.isprintable():
        raise ConfigurationError(f"{where}: an id is a string of printable characters")
    if row is False:
        if id not in shipped:
            raise ConfigurationError(
                f"{where}: False removes a shipped model; {unknown_name('model', id, shipped)}"
            )
        return
    if not isinstance(row, Mapping):
        raise ConfigurationError(
            f"{where}: a table of fields, or False to remove the model; not {row!r}"
        )
    for name in row:
        if name not in _FIELDS:
            raise ConfigurationError(f"{where}: {unknown_name('field', str(name), [*_FIELDS])}")


def _read_model(id: str, row: Mapping[str, Any], providers: Collection[str]) -> Model:
    where = f"models[{id!r}]"
    for name in ("input", "output"):
        if name not in row:
            raise ConfigurationError(
                f"{where}: {name} is missing; give the price in dollars per million tokens "
                'as a string, such as "0.50" ("0" for nothing)'
            )
    routes = _read_routes(row.get("routes"), where, providers)
    owned_by = row.get("owned_by", routes[0].provider)
    if not isinstance(owned_by, str) or not owned_by:
        raise ConfigurationError(f"{where}: owned_by is a name, not {owned_by!r}")
    created = _read_count(row.get("created", CREATED), f"{where}: created", "Unix seconds")
    return Model(
        id=id,
        owned_by=owned_by,
        created=CREATED if created is None else created,
        context=_read_count(row.get("context"), f"{where}: context", "tokens"),
        max_output=_read_count(row.get("max_output"), f"{where}: max_output", "tokens"),
        price=Price.parse(row["input"], row["output"], row.get("cached_input"), where=where),
        routes=routes,
        defaults=_read_defaults(row.get("defaults", {}), f"{where}: defaults"),
    )


def _read_routes(value: Any, where: str, providers: Collection[str]) -> tuple[Route, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ConfigurationError(
            f"{where}: routes is a list of one or more, such as ['deepseek/deepseek-v4-pro']"
        )
    ranks = (_read_rank(item, rank, f"{where}: routes") for rank, item in enumerate(value))
    routes = tuple(route for routes in ranks for route in routes)
    for route in routes:
        if route.provider not in providers:
            unknown = unknown_name("provider", route.provider, list(providers))
            raise ConfigurationError(
                f"{where}: no way along the route '{route}': {unknown}; add the provider to "
                "`providers`, or change `routes`"
            )
    return routes


def _read_rank(value: Any, rank: int, where: str) -> Iterator[Route]:
    """One route, or a table of several that share the calls by weight."""
    if not isinstance(value, Mapping):
        yield Route.parse(value, where=where, rank=rank)
        return
    if not value:
        raise ConfigurationError(f"{where}: a table of routes to weights, not an empty one")
    for text, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 0 < weight < 10**6:
            raise ConfigurationError(
                f"{where}: the weight of {text!r} is a whole number above 0, not {weight!r}"
            )
        yield Route.parse(text, where=where, rank=rank, weight=weight)


def _read_count(value: Any, where: str, unit: str) -> int | None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**53
    ):
        raise ConfigurationError(f"{where} is a whole number of {unit} above 0, not {value!r}")
    return value


def _read_defaults(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: a table of request fields, not {value!r}")
    for name in value:
        if not isinstance(name, str) or name in _NOT_A_DEFAULT:
            raise ConfigurationError(f"{where}: {name!r} is the caller's to say; remove it")
    try:
        check_fields(value)
        json.encode(value)
    except InvalidRequest as error:
        raise ConfigurationError(f"{where}: {error.message}") from None
    except json.MalformedJSON:
        raise ConfigurationError(f"{where}: holds something that JSON cannot say") from None
    return value


def _per_token(dollars: Any, where: str) -> int:
    price, rest = divmod(read_dollars(dollars, where), _MILLION)
    if rest:
        raise ConfigurationError(
            f"{where}: {dollars!r} has more than three decimals; prices are dollars per million "
            'tokens, such as "0.435"'
        )
    if price > _HIGHEST_PRICE:
        raise ConfigurationError(
            f"{where}: {dollars!r} is over $1,000,000 per million tokens; prices are dollars per "
            "million tokens, not nano-dollars"
        )
    return price


def _per_million(price: int) -> str:
    whole, thousandths = divmod(price, 1000)
    text = f"{whole}.{thousandths:03}"
    return text.removesuffix("0") if thousandths else f"{whole}.00"


def _provider(route: str) -> str:
    return route.partition("/")[0]


def _prices(row: Mapping[str, Any]) -> str:
    return f"(input {row.get('input')}, output {row.get('output')})"


def _printable(id: str) -> str:
    """At most 64 characters of what a caller sent, safe to show and to log."""
    text = "".join(char if char.isprintable() else "?" for char in id[:64])
    return text if len(id) <= 64 else text + "…"
