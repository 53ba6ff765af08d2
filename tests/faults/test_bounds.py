"""Answers without an end: what they may take of memory and time is bounded."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from typing import Any

import pytest

from oneai_middleware.backends.openai.transports import TRANSPORTS

over_each = pytest.mark.parametrize("transport", TRANSPORTS)
MEGABYTE = 1 << 20
BAD = "upstream_error"


def packed(head: bytes, piece: bytes, times: int) -> bytes:
    """The gzip of ``head`` and then ``piece`` many times over, made in no time: a block
    after a full flush stands for itself and may be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * times


@pytest.fixture
def memory() -> Any:
    """The most bytes of Python's memory that have been in use at once."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


ENDLESS = {
    "a line": b"data: " + b"x" * 2 * MEGABYTE,
    "an event": b"data: x\n" * (MEGABYTE // 4),
    "a comment": b": " + b"x" * 2 * MEGABYTE,
    "a name": b"event: " + b"x" * 2 * MEGABYTE,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_line_or_an_event_without_an_end_is_cut_off_at_a_megabyte(
    make_stage: Any, eventually: Any, name: str
) -> None:
    are_left = []

    def play(line: Any) -> None:
        line.stream() if len(stage.lines["p0"]) == 1 else line.begin()
        with contextlib.suppress(ConnectionError):
            line.send(ENDLESS[name])
        are_left.append(line.turn.hold(patience=10))

    stage = make_stage(play)
    stage.assert_failed(True, BAD)
    stage.assert_failed(True, BAD, "half an ")
    eventually(lambda: are_left == [True, True])


@over_each
def test_an_object_without_an_end_is_cut_off(make_stage: Any, memory: Any) -> None:
    def play(line: Any) -> None:
        line.stream()
        for _ in range(300):
            line.raw(b" " * MEGABYTE)

    make_stage(play).assert_failed(False, BAD)
    assert memory() < 200 * MEGABYTE


BOMBS = {
    "an object": (False, packed(b'{"choices": "', b"x" * MEGABYTE, 1000)),
    "a line": (True, packed(b"data: ", b"x" * MEGABYTE, 1000)),
    "events": (True, packed(b"", b"data: {}\n\n" * 100_000, 1000)),
}


@over_each
@pytest.mark.parametrize("name", BOMBS)
def test_a_gzip_bomb_is_unpacked_no_further_than_is_read(
    make_stage: Any, memory: Any, name: str
) -> None:
    """A gigabyte in a megabyte, and in half a dozen of kilobytes when it is packed twice."""
    stream, bomb = BOMBS[name]
    bombs = {"gzip": bomb, "gzip, gzip": zlib.compress(bomb, 9, 31)}

    def play(line: Any) -> None:
        coding = list(bombs)[len(stage.lines["p0"]) - 1]
        line.stream(f"Content-Encoding: {coding}")
        line.raw(bombs[coding])
        line.stall()

    stage = make_stage(play)
    for _ in bombs:
        assert stage.ask(stream).code in (BAD, "upstream_timeout")
    assert memory() < 200 * MEGABYTE
