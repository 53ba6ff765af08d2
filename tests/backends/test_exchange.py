"""Which call a connection serves, and what a cancel does to it."""

import contextlib
import socket
import ssl
from types import SimpleNamespace

import pytest

from oneai_middleware.backends.openai.exchange import Hold


def test_a_cancel_ends_a_connection_and_leaves_its_encryption_on():
    """TLS taken off first, a thread that sends meanwhile would send our key as it stands."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs):
        connected = ssl.create_default_context().wrap_socket(
            ours, server_hostname="localhost", do_handshake_on_connect=False
        )
        with contextlib.closing(connected):
            hold, exchange = Hold(), SimpleNamespace(holds=lambda hold: None)
            hold.begin(exchange, connected)
            hold.shut_down(exchange)
            assert theirs.recv(1) == b""
            with pytest.raises(ssl.SSLError):  # and no ValueError, for want of encryption
                connected.unwrap()
