"""Host code that uses Django's databases: what it opens is closed after it."""

import json
import threading
import urllib.request

import pytest
from django.db import connection, connections, transaction
from django.test import LiveServerTestCase, TestCase, override_settings
from project.models import Note

from oneai_middleware.integrations.django.conf import database_scope
from oneai_middleware.secret import new_secret

URL = "/oneai/v1/chat/completions"
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "one two three"}]}


def setting(function, secret, **more):
    return {
        "PROVIDERS": {"shop": {"backend": function}},
        "MODELS": {"bot": {"routes": ["shop/bot"], "input": "1", "output": "2"}},
        "ACCOUNTS": {"alice": {"balance": "1", "keys": [secret]}},
        "KEEP_ALIVE": 0.05,
        **more,
    }


def post(client, secret, **fields):
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return client.post(URL, {**CHAT, **fields}, "application/json", headers=headers)


def notes():
    return ", ".join(Note.objects.order_by("id").values_list("text", flat=True))


@pytest.fixture
def connected():
    """What a function of the host found and had open, and the connection it used."""
    return []


@pytest.fixture
def reading(connected):
    def function(request):
        wrapper = connections["default"]
        connected.append((wrapper, threading.get_ident()))
        yield notes() or "none"
        assert wrapper.connection is not None
        if request.stream:
            request.cancellation.wait(30)

    return function


@pytest.mark.usefixtures("empty")
def test_a_function_in_a_streams_thread_leaves_no_connection(
    use, secret, reading, connected, eventually, pumps
):
    client = use(ONEAI=setting(reading, secret))
    Note.objects.create(text="first")
    reply = post(client, secret, stream=True)
    said = (item for item in reply.streaming_content if item != b": keep-alive\n\n")
    assert b'"first"' in next(said)
    reply.close()
    eventually(lambda: not pumps())
    ((wrapper, thread),) = connected
    assert thread != threading.get_ident()
    assert wrapper.connection is None


def test_a_function_in_the_requests_thread_leaves_no_connection(use, secret, reading, connected):
    client = use(ONEAI=setting(reading, secret))
    connections.close_all()
    assert post(client, secret).status_code == 200
    ((wrapper, thread),) = connected
    assert thread == threading.get_ident()
    assert wrapper.connection is None


def test_a_function_that_fails_leaves_no_connection(use, secret, connected):
    def failing(request):
        connected.append(connections["default"])
        notes()
        raise ValueError

    client = use(ONEAI=setting(failing, secret))
    connections.close_all()
    for stream in (False, True):
        assert post(client, secret, stream=stream).status_code == 502
    assert [wrapper.connection for wrapper in connected] == [None, None]


def test_the_requests_thread_holds_no_connection_while_its_stream_is_open(use, secret):
    opened = []

    def who(environ):
        opened.append(notes() is not None and connection.connection is not None)
        return "alice"

    def pausing(request):
        yield "one "
        request.cancellation.wait(30)

    client = use(ONEAI=setting(pausing, secret, AUTHENTICATE=who))
    connections.close_all()
    reply = post(client, None, stream=True)
    next(reply.streaming_content)
    assert opened == [True]
    assert connection.connection is None
    reply.close()


def test_what_was_open_before_stays_open():
    notes()
    connection.close_at = None  # as with CONN_MAX_AGE = None
    before = connection.connection
    with database_scope():
        notes()
    assert connection.connection is before


def test_a_transaction_that_the_code_began_outside_is_not_ended():
    connections.close_all()
    with transaction.atomic(), database_scope():
        Note.objects.create(text="undone")
        transaction.set_rollback(True)
    assert not Note.objects.filter(text="undone").exists()


def test_a_connection_that_has_outlived_its_age_is_replaced():
    notes()
    before = connection.connection
    connection.close_at = 0
    with database_scope():
        notes()
        assert connection.connection is not before
    assert connection.connection is None


# --- in Django's own test cases -----------------------------------------------------------

SECRET = new_secret()


def who(environ):
    """The host's own identity, read from the database."""
    return Note.objects.get().text


def bot(request):
    return f"in a transaction: {connection.in_atomic_block}, {notes()}"


@override_settings(ONEAI=setting(bot, SECRET, AUTHENTICATE=who))
class InATestCase(TestCase):
    def test_nothing_is_closed_inside_its_transaction(self):
        Note.objects.create(text="alice")
        before = connection.connection
        reply = self.client.post(URL, CHAT, "application/json")
        answer = reply.json()["choices"][0]["message"]["content"]
        assert answer == "in a transaction: True, alice"
        assert connection.connection is before
        assert notes() == "alice"


@override_settings(ONEAI=setting(bot, SECRET))
class InALiveServer(LiveServerTestCase):
    def test_what_the_test_has_written_is_there(self):
        Note.objects.create(text="alice")
        for stream in (False, True):
            request = urllib.request.Request(
                self.live_server_url + URL,
                json.dumps({**CHAT, "stream": stream}).encode(),
                {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=20) as reply:
                assert b"in a transaction: False, alice" in reply.read()


def test_the_connections_to_every_database_are_closed():
    with database_scope():
        for alias in connections:
            connections[alias].ensure_connection()
    assert {connections[alias].connection for alias in connections} == {None}


def test_one_connection_that_cannot_be_closed_keeps_no_other_open(monkeypatch):
    def fail():
        raise OSError("no")

    def use_both():
        with database_scope():
            for alias in connections:
                connections[alias].ensure_connection()
            monkeypatch.setattr(connections["other"], "close", fail)

    with pytest.raises(OSError, match="no"):
        use_both()
    monkeypatch.undo()
    assert connections["default"].connection is None
