import django
import pytest
from django.apps import apps
from django.conf import settings
from django.core import mail
from django.core.checks import run_checks
from django.db import connections
from django.test import override_settings

from oneai_middleware.integrations.django import checks

SOUND = {
    "DEBUG": False,
    "LEDGER": "unlimited",
    "ACCOUNTS": {},
    "RATE_LIMITER": "project.limits:Shared",
}
OTHER = "django.middleware.common.CommonMiddleware"
OURS = "oneai_middleware.integrations.django.middleware.OneAIMiddleware"


@pytest.fixture(autouse=True)
def outside_a_test_run(monkeypatch):
    """Django's test environment keeps mail in an outbox."""
    monkeypatch.delattr(mail, "outbox")


def found():
    """The ids of what the checks say about us, and their texts."""
    return {
        message.id.removeprefix("oneai."): f"{message.msg} {message.hint}"
        for message in run_checks(app_configs=apps.get_app_configs())
        if (message.id or "").startswith("oneai.")
    }


def test_nothing_is_said_when_all_is_right(use):
    use(**SOUND)
    assert found() == {}


@pytest.mark.parametrize(
    ("id", "changes", "word"),
    [
        ("E001", {"MUONT": "/ai"}, "MOUNT"),
        ("E001", {"PROVIDERS": {"deepseek": {"api_key": "env:NOT_SET_ANYWHERE"}}}, "NOT_SET"),
        ("E002", {"MIDDLEWARE": [OTHER]}, OURS),
        ("W001", {"PROVIDERS": {}, "MODELS": {}}, "PROVIDERS"),
        ("W002", {"RATE_LIMITER": "memory"}, "N worker processes"),
        ("W002", {"RATE_LIMITER": "memory"}, "'RATE_LIMITER'] to 'redis://"),
        ("W002", {"RATE_LIMITER": "memory"}, "'PROCESSES'] to N"),
        ("W003", {"LEDGER": "memory"}, "'KEY_STORE'] to 'django'"),
        ("W003", {"LEDGER": "memory"}, "prepaid accounts are refused"),
        ("W003", {"LEDGER": "memory", "ALLOW_MEMORY_LEDGER": True}, "has its own"),
        ("W004", {"MIDDLEWARE": [OTHER, OURS]}, OTHER),
        ("W005", {"TOP_UP_URL": "https://me:pa55@shop.example/"}, "ONEAI['TOP_UP_URL']"),
        ("W006", {"ASGI_APPLICATION": "project.asgi.application"}, "wsgi.py"),
        ("W007", {"ROOT_URLCONF": "project.included"}, "'/oneai/'"),
        (
            "W008",
            {"ROOT_URLCONF": "project.included", "MIDDLEWARE": [OTHER], "MOUNT": "/ai"},
            "'/oneai/'",
        ),
    ],
)
def test_each_mistake_is_named_and_nothing_else(use, id, changes, word):
    use(**{**SOUND, **changes})
    messages = found()
    assert set(messages) == {id}
    assert word in messages[id]
    assert "pa55" not in messages[id]


def test_the_api_may_be_in_the_projects_urls_alone(use):
    use(**SOUND, ROOT_URLCONF="project.included", MIDDLEWARE=[OTHER])
    assert found() == {}


IN_THE_DATABASE = {**SOUND, "LEDGER": None, "KEY_STORE": "django"}


def test_keys_and_money_in_the_projects_database_are_right_for_several_processes(use, monkeypatch):
    use(**IN_THE_DATABASE)
    monkeypatch.setitem(
        connections.settings["default"], "OPTIONS", {"transaction_mode": "IMMEDIATE"}
    )
    assert found() == {}


def test_sqlite_as_django_begins_it_is_not(use):
    use(**IN_THE_DATABASE)
    if django.VERSION < (5, 1):  # there is no other way to begin
        assert found() == {}
        return
    assert set(found()) == {"W009"}
    assert "'transaction_mode': 'IMMEDIATE'" in found()["W009"]
    use(**{**IN_THE_DATABASE, "KEY_STORE": "memory", "LEDGER": "django"})
    assert set(found()) == {"W009"}
    use(**{**IN_THE_DATABASE, "DEBUG": True})
    assert found() == {}


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_server_is(use, tables):
    use(**IN_THE_DATABASE)
    assert found() == {}


@pytest.mark.parametrize(
    "changes",
    [{"RATE_LIMITER": "redis://localhost"}, {"RATE_LIMITER": "memory", "PROCESSES": 2}],
)
def test_limits_in_redis_or_shared_out_are_right_for_several_processes(use, changes):
    use(**{**SOUND, **changes})
    assert found() == {}


def test_memory_is_no_fault_in_a_test_run(use, monkeypatch):
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    use(DEBUG=False)
    assert found() == {}


def test_a_password_in_a_list_is_found(use):
    servers = {"servers": ["redis://me:pa55@cache/"]}
    use(**SOUND, TIERS={}, PROVIDERS={"up": {"backend": "echo"}}, MODELS={})
    with override_settings(ONEAI={**settings.ONEAI, "EXTRA": servers}):
        messages = list(checks._passwords(settings.ONEAI, "ONEAI"))
    [message] = messages
    assert "ONEAI['EXTRA']['servers'][0]" in message.msg


def test_memory_is_right_for_development(use):
    use(DEBUG=True)
    assert found() == {}


def test_a_password_under_a_name_that_django_hides_is_no_fault(use):
    use(
        **SOUND,
        PROVIDERS={"up": {"api_key": "https://me:pa55@host/", "base_url": "http://h/v1"}},
        MODELS={},
    )
    assert found() == {}


def test_a_text_that_is_no_url_at_all_is_no_fault(use):
    use(**SOUND, TIERS={"http://[": {"rpm": 1}})
    assert found() == {}
