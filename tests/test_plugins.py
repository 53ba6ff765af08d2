"""From a word in the settings to an object, in four spellings."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from oneai_middleware import ConfigurationError, Gateway, plugins
from oneai_middleware.backends.base import Backend
from oneai_middleware.backends.echo import EchoBackend
from oneai_middleware.backends.function import FunctionBackend
from oneai_middleware.key_stores.base import KeyStore
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.ledgers.base import Ledger
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.ledgers.unlimited import UnlimitedLedger
from oneai_middleware.plugins import build_backend, build_store, installed, load_callable
from oneai_middleware.protocol.chat import ChatRequest
from oneai_middleware.rate_limiters.base import RateLimiter
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.settings import Settings

SETTINGS = Settings()


def refusal(build: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        build()
    return str(caught.value)


class Shelf(KeyStore):
    """A key store that knows what it was made of."""

    made_of: tuple[Mapping[str, Any], str | None]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        shelf = cls()
        shelf.made_of = (settings, url)
        return shelf


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, look_anew: Any) -> Callable[..., None]:
    """Have packages offer entry points, as if they were installed."""
    offered: list[EntryPoint] = []
    genuine = plugins.entry_points
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group: [*genuine(group=group), *(e for e in offered if e.group == group)],
    )

    def offer(group: str, name: str, value: str, package: str = "a-package") -> None:
        entry = EntryPoint(name, value, f"oneai_middleware.{group}")
        vars(entry)["dist"] = SimpleNamespace(name=package)
        offered.append(entry)
        look_anew()

    return offer


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Modules that can be imported under the names given."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def module(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        names.append(name)
        return name

    yield module
    for name in names:
        sys.modules.pop(name, None)


# --- four spellings -------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "spec", "family", "kind"),
    [
        ("key_store", "memory", KeyStore, MemoryKeyStore),
        ("rate_limiter", "memory", RateLimiter, MemoryRateLimiter),
        ("ledger", "memory", Ledger, MemoryLedger),
        ("ledger", "unlimited", Ledger, UnlimitedLedger),
        ("ledger", "oneai_middleware.ledgers.memory:MemoryLedger", Ledger, MemoryLedger),
        ("ledger", MemoryLedger, Ledger, MemoryLedger),
    ],
)
def test_a_store_is_found_by_name_by_path_and_by_class(
    setting: str, spec: Any, family: Any, kind: type
) -> None:
    assert type(build_store(setting, spec, family, SETTINGS)) is kind


def test_an_instance_is_taken_as_it_is() -> None:
    ledger = MemoryLedger()
    assert build_store("ledger", ledger, Ledger, SETTINGS) is ledger


def test_a_url_names_the_part_by_its_scheme_and_reaches_it_whole(
    offer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shelves", SimpleNamespace(Shelf=Shelf))
    offer("key_stores", "shelf", "shelves:Shelf")
    url = "shelf://alice:secret@host:5/place?x=1"
    made_of = build_store("key_store", url, KeyStore, SETTINGS).made_of  # type: ignore[attr-defined]
    assert made_of == (SETTINGS, url)
    made_of = build_store("key_store", "shelf", KeyStore, SETTINGS).made_of  # type: ignore[attr-defined]
    assert made_of == (SETTINGS, None)


def test_a_path_can_lead_to_an_instance_and_below_a_class(module: Any) -> None:
    source = """
        from oneai_middleware.ledgers.memory import MemoryLedger
        class Shop:
            ledger = MemoryLedger({"alice": 5})
    """
    name = module("tests_instances", "\n".join(line[8:] for line in source.splitlines()))
    ledger = build_store("ledger", f"{name}:Shop.ledger", Ledger, SETTINGS)
    assert ledger.balance("alice").available == 5


def test_only_the_part_that_is_named_is_imported(offer: Any, module: Any) -> None:
    offer("ledgers", "other", f"{module('tests_never_imported', '1 / 0')}:X")
    build_store("ledger", "memory", Ledger, SETTINGS)
    assert "tests_never_imported" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("redis:/:s3cret@host:6379", "'redis'"),
        ("redis:s3cret@host", "'redis'"),
        ("localhost:6379", "'localhost'"),
        ("redis-host:s3cret", "'redis-host'"),
        (":s3cret", "''"),
        ("module:", "'module'"),
    ],
)
def test_an_address_that_lacks_its_slashes_is_refused_without_its_password(
    spec: str, shown: str
) -> None:
    message = refusal(lambda: build_store("rate_limiter", spec, RateLimiter, SETTINGS))
    assert message == (
        f"rate_limiter: {shown} and what follows is neither a name, nor 'module:attribute', nor "
        "an address; an address has '://'"
    )


# --- backends ---------------------------------------------------------------------


def answer(request: ChatRequest) -> str:
    return "hello"


def test_a_backend_is_built_with_the_options_of_its_provider() -> None:
    backend = build_backend("x", "echo", {"text": "hi"})
    assert isinstance(backend, EchoBackend)
    assert isinstance(build_backend("x", EchoBackend, {"text": "hi"}), EchoBackend)
    assert build_backend("x", backend, {}) is backend


def test_a_function_is_a_backend_also_by_its_path(module: Any) -> None:
    name = module("tests_bots", "def answer(request):\n    return 'hello ' + request.model\n")
    request = ChatRequest({"model": "m", "messages": []})
    for spec in (f"{name}:answer", lambda request: "hello " + request.model):
        backend = build_backend("x", spec, {})
        assert isinstance(backend, FunctionBackend)
        assert list(backend.stream(request)) == ["hello m"]


def test_a_bound_method_is_a_function_too() -> None:
    class Bot:
        def answer(self, request: ChatRequest) -> str:
            return "hello"

    assert isinstance(build_backend("x", Bot().answer, {}), FunctionBackend)


@pytest.mark.parametrize("spec", [5, object(), dict, KeyStore, "json:decoder", MemoryLedger()])
def test_what_is_neither_a_backend_nor_a_function_is_refused(spec: Any) -> None:
    message = refusal(lambda: build_backend("x", spec, {}))
    assert message.startswith("providers['x']['backend']: ")
    assert "neither a Backend nor a function" in message


def test_an_option_of_a_wrong_type_names_the_provider() -> None:
    class Picky(Backend):
        def __init__(self, *, size: int) -> None:
            super().__init__()

    message = refusal(lambda: build_backend("x", Picky, {}))
    assert message.startswith("providers['x']: ")
    assert "size" in message


# --- refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["oneai_middleware.ledgers.memory:MemoryLedger", MemoryLedger()])
def test_a_part_of_the_wrong_family_is_refused_with_the_right_one(spec: Any) -> None:
    message = refusal(lambda: build_store("key_store", spec, KeyStore, SETTINGS))
    assert message.startswith("key_store: ")
    assert "oneai_middleware.key_stores.base.KeyStore" in message


def test_an_unknown_name_is_answered_with_the_installed_ones(offer: Any) -> None:
    offer("ledgers", "gold", "nowhere:Gold")
    message = refusal(lambda: build_store("ledger", "oracle://h/db", Ledger, SETTINGS))
    assert message == (
        "ledger: unknown name 'oracle'; known: django, gold, mariadb, memory, mysql, postgresql, "
        "sqlite, unlimited"
    )


def test_a_name_that_two_packages_offer_is_refused_where_it_is_used(offer: Any) -> None:
    offer("ledgers", "gold", "one_module:Gold", "first-package")
    build_store("ledger", "memory", Ledger, SETTINGS)
    offer("ledgers", "gold", "other_module:Gold", "second-package")
    build_store("ledger", "memory", Ledger, SETTINGS)
    message = refusal(lambda: build_store("ledger", "gold", Ledger, SETTINGS))
    assert "first-package, second-package" in message
    assert "'one_module:Gold'" in message


def test_a_name_that_shadows_one_of_ours_is_refused_as_well(offer: Any) -> None:
    offer("ledgers", "memory", "other_module:Gold", "second-package")
    message = refusal(lambda: build_store("ledger", "memory", Ledger, SETTINGS))
    assert re.search(r"several packages \(oneai.middleware, second-package\)", message)


def test_the_same_entry_point_found_twice_is_no_conflict(offer: Any) -> None:
    offer("ledgers", "memory", "oneai_middleware.ledgers.memory:MemoryLedger", "a copy on the path")
    assert type(build_store("ledger", "memory", Ledger, SETTINGS)) is MemoryLedger


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_why(
    offer: Any, module: Any, source: str, said: str
) -> None:
    path = f"{module('tests_broken', source)}:Part"
    offer("ledgers", "broken", path)
    for spec in ("broken", path):
        message = refusal(lambda spec=spec: build_store("ledger", spec, Ledger, SETTINGS))  # type: ignore[misc]
        assert message.startswith(f"ledger: {path!r} cannot be imported: ")
        assert said in message


@pytest.mark.parametrize("spec", [":", "a:", ":b", "..:x", "a b:c", "json:", "json:.x", "/x:y"])
def test_a_malformed_path_is_refused_like_any_other(spec: str) -> None:
    assert refusal(lambda: build_store("ledger", spec, Ledger, SETTINGS)).startswith("ledger: ")


def test_a_store_that_takes_no_url_says_so_without_repeating_it() -> None:
    message = refusal(lambda: build_store("ledger", "memory://alice:secret@host", Ledger, SETTINGS))
    assert message == "ledger: MemoryLedger is not configured by a URL"


# --- functions --------------------------------------------------------------------


def test_a_hook_is_a_function_or_its_path_or_nothing(module: Any) -> None:
    name = module("tests_hooks", "def who(environ):\n    return 'alice'\nnothing = 5\n")
    assert load_callable("authenticate", None) is None
    assert load_callable("authenticate", answer) is answer
    assert load_callable("authenticate", f"{name}:who")({}) == "alice"
    assert refusal(lambda: load_callable("authenticate", f"{name}:nothing")) == (
        f"authenticate: '{name}:nothing' is not a function"
    )
    assert "cannot be imported" in refusal(lambda: load_callable("authenticate", f"{name}:gone"))


def test_our_own_parts_come_in_by_the_same_road() -> None:
    groups = ("backends", "key_stores", "rate_limiters", "ledgers")
    found = {group: sorted(installed(group)) for group in groups}
    assert "openai" in found["backends"]
    assert "echo" in found["backends"]
    assert "memory" in found["key_stores"]
    assert "memory" in found["rate_limiters"]
    assert {"memory", "unlimited"} <= set(found["ledgers"])


# --- a plug-in whose store is down ----------------------------------------------------

PASSWORD = "hunter2"


class Down:
    """Made without a connection, as a part has to be; whatever asks it fails."""

    one_process = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        return cls()

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise ConnectionError(f"no route to db://alice:{PASSWORD}@host")

    find = account = create = update = keys = accounts = save_account = _fail
    acquire = renew = settle = cancel = status = _fail
    hold = checkpoint = top_up = balance = entries = usage = sweep = audit = _fail


class KeysDown(Down, KeyStore):  # type: ignore[misc]
    """A key store that is down."""


class LimitsDown(Down, RateLimiter):  # type: ignore[misc]
    """A rate limiter that is down."""


class MoneyDown(Down, Ledger):  # type: ignore[misc]
    """A ledger that is down."""


@pytest.fixture
def down(offer: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL that names, for every family, a store that is down."""
    parts = SimpleNamespace(Keys=KeysDown, Limits=LimitsDown, Money=MoneyDown)
    monkeypatch.setitem(sys.modules, "down_parts", parts)
    offer("key_stores", "down", "down_parts:Keys")
    offer("rate_limiters", "down", "down_parts:Limits")
    offer("ledgers", "down", "down_parts:Money")
    return f"down://alice:{PASSWORD}@host/db"


CHAT = "/oneai/v1/chat/completions"
BODY = {"model": "glm-4", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("setting", ["key_store", "rate_limiter", "ledger"])
def test_a_store_that_is_down_costs_the_host_nothing_and_our_callers_a_503(
    make_app: Any, send: Any, headers: Any, down: str, caplog: Any, setting: str, stream: bool
) -> None:
    options = {"ledger": "memory", setting: down}
    if setting == "key_store":
        options["accounts"] = {}  # type: ignore[assignment]
    app = make_app(**options)
    for _ in range(2):
        assert send(app, "GET", "/").status == 200
        assert send(app, "GET", "/oneai/health").status == 200
        reply = send(app, "POST", CHAT, {**BODY, "stream": stream}, headers)
        assert reply.status == 503
        assert reply.error["code"] == "store_unavailable"
        assert int(reply.headers["retry-after"]) > 0
        assert PASSWORD not in reply.read().decode()
    models = send(app, "GET", "/oneai/v1/models", headers=headers)
    assert models.status == (503 if setting == "key_store" else 200)
    assert "ConnectionError" in caplog.text
    assert PASSWORD not in caplog.text
    if setting != "ledger":
        assert list(app.gateway.ledger.entries("alice")) == []


def test_all_stores_down_at_once_and_the_host_still_starts_and_serves(
    make_app: Any, send: Any, headers: Any, down: str
) -> None:
    app = make_app(key_store=down, rate_limiter=down, accounts={})
    assert type(app.gateway.ledger) is MoneyDown  # money lives where the keys do
    assert send(app, "GET", "/page").status == 200
    assert send(app, "POST", CHAT, BODY, headers).error["code"] == "store_unavailable"
    # What a store is not needed for is answered as ever.
    assert send(app, "POST", CHAT, BODY).status == 401
    assert send(app, "POST", "/oneai/v1/nothing", BODY).status == 404


def test_a_callers_place_comes_back_from_a_store_that_is_down(
    make_app: Any, send: Any, headers: Any, down: str
) -> None:
    app = make_app(ledger=down, max_calls=1)
    for _ in range(3):
        assert send(app, "POST", CHAT, BODY, headers).error["code"] == "store_unavailable"


def test_a_host_whose_providers_cannot_be_reached_starts_and_serves(
    make_app: Any, send: Any, headers: Any
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        app = make_app(providers={"zhipu": {"base_url": url, "api_key": "sk-upstream-secret"}})
        assert send(app, "GET", "/").status == 200
        assert send(app, "GET", "/oneai/v1/models", headers=headers).status == 200
        reply = send(app, "POST", CHAT, BODY, headers)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert "127.0.0.1" not in reply.read().decode()
    assert app.gateway.ledger.balance("alice").available == 10 * 10**9


def test_a_part_that_connects_when_it_is_made_is_told_not_to() -> None:
    class Hasty(Ledger):
        def __init__(self) -> None:
            raise ConnectionError(PASSWORD)

    class HastyBackend(Backend):
        def __init__(self, **options: Any) -> None:
            raise OSError(PASSWORD)

    assert refusal(lambda: build_store("ledger", Hasty, Ledger, SETTINGS)) == (
        "ledger: making it raised ConnectionError; a part connects when it is first used, not "
        "when it is made"
    )
    message = refusal(lambda: build_backend("x", HastyBackend, {}))
    assert message.startswith("providers['x']: making it raised OSError; ")


def test_a_key_store_that_brings_no_ledger_asks_for_one() -> None:
    class Keys(KeyStore):
        def find(self, digest: str) -> None:
            return None

    for spec in (Keys(), Keys):
        with pytest.raises(ConfigurationError, match=r"^ledger: name one beside a key_store"):
            Gateway(key_store=spec)
