"""The options: their spellings, their checks, and what a mistake is answered with."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware import ConfigurationError, Gateway, OneAIMiddleware, Settings
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.protocol.chat import Timeouts
from oneai_middleware.secret import new_secret

OPTIONS = {option.name: option for option in dataclasses.fields(Settings)}


def refusal(**options: Any) -> str:
    """What a gateway with these options answers at its start."""
    with pytest.raises(ConfigurationError) as caught:
        Gateway(**options)
    return str(caught.value)


# --- good values ----------------------------------------------------------------


def test_a_gateway_starts_without_any_setting() -> None:
    settings = Gateway().settings
    assert settings.mount == "/oneai"
    assert settings.timeouts == Timeouts()
    assert dict(settings) == {name: getattr(settings, name) for name in OPTIONS}


def test_settings_are_a_mapping_of_their_options_and_nothing_else() -> None:
    settings = Settings.load({"lease": 5})
    assert (settings["lease"], len(settings), list(settings)) == (5.0, len(OPTIONS), [*OPTIONS])
    assert settings.get("load") is None
    with pytest.raises(KeyError):
        settings["timeouts"]


def test_settings_cannot_be_changed_and_share_no_default() -> None:
    settings = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.mount = "/other"  # type: ignore[misc]
    assert settings.providers is not Settings().providers


@pytest.mark.parametrize(
    ("given", "mount"),
    [
        ("", ""),
        ("/", ""),
        ("/oneai", "/oneai"),
        ("/oneai/", "/oneai"),
        ("/a/b.c/d_e", "/a/b.c/d_e"),
    ],
)
def test_a_mount_is_a_path_or_nothing(given: str, mount: str) -> None:
    assert Settings.load({"mount": given}).mount == mount


def test_the_four_time_limits_are_settings_of_their_own() -> None:
    settings = Settings.load(
        {"connect_timeout": 1, "first_token_timeout": 2, "idle_timeout": 3, "total_timeout": 4.5}
    )
    assert settings.timeouts == Timeouts(1.0, 2.0, 3.0, 4.5)


def test_a_caller_who_takes_nothing_has_half_a_minute_unless_it_is_set() -> None:
    assert Settings().write_timeout == 30.0
    assert Settings.load({"write_timeout": 5}).write_timeout == 5.0


def test_a_drain_file_is_a_path_in_any_form_and_need_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "drain"
    assert Settings().drain_file is None
    assert Settings.load({"drain_file": str(file)}).drain_file == file
    assert Settings.load({"drain_file": file}).drain_file == file
    assert not file.exists()


def test_every_option_declares_a_check_and_says_what_it_is() -> None:
    for option in OPTIONS.values():
        assert callable(option.metadata["check"])
        assert option.metadata["help"].endswith(".")
        if option.default is not dataclasses.MISSING and option.default is not None:
            assert option.metadata["check"](option.name, option.default) == option.default


# --- bad values -----------------------------------------------------------------

NOT_A_TABLE = ["deepseek", ["deepseek"], 1, None, {1: {}}]
NOT_SECONDS = ["10", 0, -1, True, None, math.inf, math.nan, 1e9]
NOT_A_COUNT = ["10", 0, -1, 1.5, True, 2**50]
NOT_AN_ADDRESS = ["example.com", "javascript:alert(1)", 5, ""]

BAD: dict[str, list[Any]] = {
    "mount": ["oneai", "https://host/oneai", 5, None, "/a//b", "/a/../b", "/a b", "/a?b", "/é"],
    "providers": NOT_A_TABLE,
    "models": NOT_A_TABLE,
    "tiers": NOT_A_TABLE,
    "accounts": NOT_A_TABLE,
    "key_store": [None, "", 5, object()],
    "ledger": ["", 5, object()],
    "rate_limiter": [None, "", 5, object()],
    "processes": NOT_A_COUNT,
    "on_store_down": ["shut", "", None, True],
    "authenticate": ["shop", 5],
    "keep_alive": NOT_SECONDS,
    "connect_timeout": NOT_SECONDS,
    "first_token_timeout": NOT_SECONDS,
    "idle_timeout": NOT_SECONDS,
    "total_timeout": NOT_SECONDS,
    "write_timeout": NOT_SECONDS,
    "drain_file": ["", 7, True],
    "lease": NOT_SECONDS,
    "default_output": [*NOT_A_COUNT, None],
    "max_body_bytes": [*NOT_A_COUNT, None],
    "max_calls": NOT_A_COUNT,
    "on_disconnect": ["never", "", None, True],
    "allow_memory_ledger": ["yes", 1, None],
    "top_up_url": NOT_AN_ADDRESS,
    "upgrade_url": NOT_AN_ADDRESS,
}


def test_every_option_has_bad_values_in_this_file() -> None:
    assert set(BAD) == set(OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_value_fails_at_start_and_names_its_setting(name: str, value: Any) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name}: ")
    assert "\n" not in message


@pytest.mark.parametrize("mount", ["/v1", "/oneai/v1", "/oneai/v1/"])
def test_a_mount_that_ends_in_v1_is_refused_with_what_to_write_instead(mount: str) -> None:
    message = refusal(mount=mount)
    assert "which the API adds by itself" in message
    assert repr(mount.rstrip("/").removesuffix("/v1")) in message


@pytest.mark.parametrize("key", ["oneai-sk-test", "sk-1234", "alice", ""])
def test_a_key_that_somebody_made_up_is_refused_with_how_to_make_one(key: str) -> None:
    message = refusal(accounts={"alice": {"keys": [key]}})
    assert message.startswith("accounts['alice']: keys holds something that is not an API key")
    assert message.endswith("run `oneai secret` for a fresh one")


@pytest.mark.parametrize("spec", ["django", "sqlite:///shop.db", "shop:Keys", MemoryKeyStore()])
def test_accounts_beside_another_key_store_are_refused_because_nobody_reads_them(
    spec: Any,
) -> None:
    message = refusal(key_store=spec, ledger="memory", accounts={"alice": {}})
    assert message.startswith("accounts: only the key store 'memory' reads them; ")
    assert "remove them here" in message


def test_no_accounts_beside_another_key_store_are_right() -> None:
    store = MemoryKeyStore()
    assert Gateway(key_store=store, ledger="memory").key_store is store
    assert Gateway(key_store=store, ledger="memory", accounts={}).key_store is store


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(OPTIONS)), JSON)
def test_whatever_an_option_is_given_it_is_used_or_refused_by_name(name: str, value: Any) -> None:
    try:
        Gateway(**{name: value})
    except ConfigurationError as error:
        assert str(error).startswith(name)  # noqa: PT017 - most examples do raise


FIELDS = {
    "providers": ["backend", "base_url", "api_key", "headers", "timeouts", "cooldown"],
    "models": ["routes", "input", "output", "context", "created", "owned_by", "defaults"],
    "tiers": ["rpm", "tpm", "concurrent"],
    "accounts": ["tier", "balance", "prepaid", "keys", "models", "limits"],
}


ODD = [None, True, 0, -1, 1.5, math.nan, "", "x", [], [None], ["x"], {}, {"": None}, {"x": "x"}]


@pytest.mark.parametrize(("name", "field"), [(n, field) for n in FIELDS for field in FIELDS[n]])
def test_an_odd_value_of_a_field_is_used_or_refused_by_name(name: str, field: str) -> None:
    for value in ODD:
        use_or_refuse(name, field, value)


@given(st.data(), JSON)
def test_whatever_a_field_is_given_it_is_used_or_refused_by_name(data: Any, value: Any) -> None:
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    field = data.draw(st.sampled_from(FIELDS[name]))
    use_or_refuse(name, field, value)


def use_or_refuse(name: str, field: str, value: Any) -> None:
    """Give one field a value: it is used, or refused with its place, never anything else."""
    row = {field: value} if name != "providers" else {"backend": "openai", field: value}
    try:
        Gateway(**{"providers": {"deepseek": {"backend": "echo"}}, name: {"x": row}})
    except ConfigurationError as error:
        assert str(error).startswith(f"{name}['x']")  # noqa: PT017 - most values do raise


@pytest.mark.parametrize("value", [-1, 61, True, "2", None, math.nan, math.inf, [2]])
def test_a_cooldown_is_a_number_of_seconds_up_to_a_minute(value: Any) -> None:
    message = refusal(providers={"x": {"backend": "echo", "cooldown": value}})
    assert message == ("providers['x']: cooldown is a number of seconds from 0 (never) to 60")


def test_a_cooldown_may_be_set_to_any_time_or_none() -> None:
    rows = {f"p{value}": {"backend": "echo", "cooldown": value} for value in (0, 0.5, 60)}
    providers = Gateway(providers={**rows, "plain": {"backend": "echo"}}).providers
    assert [provider.cooldown for provider in providers.values()] == [0, 0.5, 60, 2]


# --- misspelt names -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mont": "/ai"}, "unknown setting 'mont'; did you mean 'mount'?"),
        ({"ratelimiter": "memory"}, "did you mean 'rate_limiter'?"),
        ({"zzz": 1}, "unknown setting 'zzz'; known: accounts, allow_memory_ledger"),
        ({"rate_limiter": "memroy"}, "rate_limiter: unknown name 'memroy'; did you mean 'memory'?"),
        (
            {"providers": {"x": {"backend": "ecko"}}},
            "providers['x']['backend']: unknown name 'ecko'; did you mean 'echo'?",
        ),
        (
            {"providers": {"deepseek": {"api_kee": "k", "api_key": "k"}}},
            "providers['deepseek']: OpenAIBackend: unknown option 'api_kee'; "
            "did you mean 'api_key'?",
        ),
        (
            {"providers": {"x": {"backend": "echo", "timeout": {"idle": 1}}}},
            "providers['x']: EchoBackend: unknown option 'timeout'; did you mean 'timeouts'?",
        ),
        (
            {"providers": {"x": {"backend": "echo", "timeouts": {"first": 1}}}},
            "providers['x']['timeouts']: unknown timeout 'first'; did you mean 'first_token'?",
        ),
        (
            {"providers": {"zhipu": {"backend": "echo"}}, "models": {"glm-4": {"inputs": "1"}}},
            "models['glm-4']: unknown field 'inputs'; did you mean 'input'?",
        ),
        (
            {
                "providers": {"zhipu": {"backend": "echo"}},
                "models": {"glm-4": {"routes": ["zipu/x"]}},
            },
            "did you mean 'zhipu'?",
        ),
        ({"models": {"glm4": False}}, "did you mean 'glm-4'?"),
        ({"tiers": {"pro": {"rmp": 5}}}, "tiers['pro']: unknown field 'rmp'; did you mean 'rpm'?"),
        (
            {"accounts": {"bob": {"ballance": "1"}}},
            "accounts['bob']: unknown field 'ballance'; did you mean 'balance'?",
        ),
        (
            {"accounts": {"bob": {"tier": "prro"}}},
            "accounts['bob']: unknown tier 'prro'; did you mean 'pro'?",
        ),
        (
            {"accounts": {"bob": {"limits": {"tmp": 1}}}},
            "accounts['bob']: limits: unknown field 'tmp'; did you mean 'tpm'?",
        ),
    ],
)
def test_a_misspelt_name_is_answered_with_what_was_meant(
    options: dict[str, Any], said: str
) -> None:
    assert said in refusal(**options)


# --- the environment ----------------------------------------------------------------


def test_a_value_can_be_read_from_the_environment_at_any_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = new_secret()
    monkeypatch.setenv("ONEAI_TEST_MOUNT", "/from-env")
    monkeypatch.setenv("ONEAI_TEST_SECRET", secret)
    gateway = Gateway(
        mount="env:ONEAI_TEST_MOUNT",
        accounts={"alice": {"keys": ["env:ONEAI_TEST_SECRET"]}},
    )
    assert gateway.settings.mount == "/from-env"
    assert gateway.key_store.find(gateway.key_store.digest(secret) or "") is not None


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_missing_or_empty_is_named_with_its_place(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("ONEAI_TEST_UNSET", raising=False)
    if value is not None:
        monkeypatch.setenv("ONEAI_TEST_UNSET", value)
    message = refusal(providers={"deepseek": {"api_key": "env:ONEAI_TEST_UNSET"}})
    assert message.startswith("providers['deepseek']['api_key']: ")
    assert "ONEAI_TEST_UNSET" in message
    message = refusal(accounts={"alice": {"keys": ["env:ONEAI_TEST_UNSET"]}})
    assert message.startswith("accounts['alice']['keys'][0]: ")


# --- secrets ------------------------------------------------------------------------


def test_no_secret_shows_in_a_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = new_secret()
    gateway = Gateway(
        providers={"deepseek": {"api_key": "sk-upstream-secret"}},
        accounts={"alice": {"keys": [secret]}},
    )
    shown = f"{gateway.settings!r} {gateway!r} {gateway.providers!r} {gateway.key_store!r}"
    assert "sk-upstream-secret" not in shown
    assert secret not in shown


@pytest.mark.parametrize(
    "options",
    [
        {"providers": {"deepseek": {"api_key": "sk-upstream-secret\n"}}},
        {"providers": {"deepseek": {"api_key": "sk-upstream-secret", "base_url": 5}}},
        {"providers": {"deepseek": {"api_key": ["sk-upstream-secret"]}}},
        {"providers": {"deepseek": "sk-upstream-secret"}},
        {"providers": {"x": {"headers": "sk-upstream-secret", "base_url": "http://x"}}},
        {"accounts": {"alice": {"keys": ["sk-upstream-secret"]}}},
        {"accounts": {"alice": {"keys": "sk-upstream-secret"}}},
        {"accounts": {"alice": "sk-upstream-secret"}},
        {"key_store": "postgres://alice:sk-upstream-secret@host/db"},
        {"key_store": "memory://alice:sk-upstream-secret@host/db"},
        {"rate_limiter": "memory://alice:sk-upstream-secret@host/0"},
        {"ledger": "memory://alice:sk-upstream-secret@host/db"},
    ],
)
def test_no_secret_shows_in_a_refusal(options: dict[str, Any]) -> None:
    assert "sk-upstream-secret" not in refusal(**options)


# --- the settings file --------------------------------------------------------------


def test_a_toml_file_holds_the_same_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEAI_TEST_KEY", "sk-upstream-secret")
    path = tmp_path / "oneai.toml"
    path.write_text(
        """
        mount = "/ai"
        max_calls = 4
        lease = 12.5
        drain_file = "/run/shop/drain"

        [providers.deepseek]
        api_key = "env:ONEAI_TEST_KEY"
        timeouts = { idle = 5 }

        [models."org/modèle"]
        routes = ["deepseek/x"]
        input = "0.10"
        output = "0.20"

        [tiers.pro]
        rpm = 300
        """,
        encoding="utf-8",
    )
    settings = Settings.from_file(path)
    assert (settings.mount, settings.max_calls, settings.lease) == ("/ai", 4, 12.5)
    assert settings.drain_file == Path("/run/shop/drain")
    gateway = Gateway(Settings.from_file(str(path)))
    assert "org/modèle" in gateway.catalog
    assert gateway.providers["deepseek"].timeouts == Timeouts(idle=5)


@pytest.mark.parametrize("content", [b"mount = ", b"[providers", b"mount = '\xff'"])
def test_a_file_that_is_no_toml_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "oneai.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"oneai\.toml: cannot be read as TOML"):
        Settings.from_file(path)


def test_a_file_that_is_missing_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        Settings.from_file(tmp_path / "missing.toml")


def test_settings_are_checked_however_they_are_made(monkeypatch):
    monkeypatch.setenv("ONEAI_TEST_MOUNT", "/api")
    assert Settings(mount="env:ONEAI_TEST_MOUNT").mount == "/api"
    with pytest.raises(ConfigurationError, match="ends in /v1"):
        Settings(mount="/x/v1")
    with pytest.raises(ConfigurationError, match="ONEAI_TEST_NOT_SET"):
        Settings(providers={"p": {"api_key": "env:ONEAI_TEST_NOT_SET"}})


def test_options_beside_a_ready_object_are_refused():
    with pytest.raises(ConfigurationError, match="not both"):
        Gateway(Settings(), mount="/other")
    with pytest.raises(ConfigurationError, match="not both"):
        OneAIMiddleware(lambda environ, start_response: [], Gateway(), mount="/other")
