"""How many calls one process runs, so that the host's own pages keep their threads."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oneai_middleware.errors import GatewayOverloaded
from oneai_middleware.places import Places


def take(places: Places, threads: int | None = None) -> bool:
    """One more place, if there is one."""
    try:
        with places.taken(threads):
            return True
    except GatewayOverloaded:
        return False


def fill(places: Places, threads: int | None, tries: int = 50) -> int:
    """How many of so many calls at once find a place."""
    return sum(take(places, threads) for _ in range(tries))


# --- how many -------------------------------------------------------------------


@pytest.mark.parametrize("threads", [None, 1, 2, 8, 50])
def test_a_number_that_is_set_holds_whatever_the_server_has(threads: int | None) -> None:
    places = Places(3, None)
    assert fill(places, threads) == 3
    assert places.count == 3


@pytest.mark.parametrize(
    ("threads", "places"), [(2, 1), (3, 1), (4, 2), (10, 8), (None, 50), (1, 50), (0, 50)]
)
def test_otherwise_two_of_the_servers_threads_are_kept_free_where_it_has_them(
    threads: int | None, places: int
) -> None:
    assert fill(Places(None, None), threads) == places


def test_a_place_that_is_given_back_is_somebody_elses() -> None:
    places = Places(1, None)
    for _ in range(3):
        assert take(places)
        assert not take(places)
        places.leave()
    assert places.count == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_call_that_is_refused_further_on_keeps_no_place(error: type[BaseException]) -> None:
    places = Places(1, None)
    for _ in range(3):
        with contextlib.suppress(error), places.taken(None):
            assert places.count == 1
            raise error
        assert places.count == 0


def test_of_many_calls_at_once_no_more_get_in_than_there_are_places() -> None:
    places, barrier = Places(5, None), threading.Barrier(32)

    def come_and_go() -> bool:
        barrier.wait(10)
        admitted = take(places)
        barrier.wait(10)  # nobody leaves before everybody has come
        if admitted:
            places.leave()
        return admitted

    with ThreadPoolExecutor(32) as pool:
        for _ in range(10):
            tried = [pool.submit(come_and_go) for _ in range(32)]
            assert sum(each.result(10) for each in tried) == 5
    assert places.count == 0


def test_those_turned_away_together_do_not_all_come_back_together() -> None:
    places = Places(1, None)
    take(places)
    waits = set()
    for _ in range(300):
        with pytest.raises(GatewayOverloaded) as caught, places.taken(None):
            pass
        waits.add(caught.value.retry_after)
    assert waits == {1, 2, 3, 4, 5}


# --- none at all ----------------------------------------------------------------


def test_a_drained_process_takes_nobody_and_those_inside_run_on() -> None:
    places = Places(None, None)
    assert take(places)
    assert not places.is_draining
    places.drain()
    assert places.is_draining
    assert not take(places)
    assert places.count == 1
    places.leave()
    assert places.count == 0
    assert not take(places)


def test_a_process_is_drained_for_as_long_as_there_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "drain"
    places = Places(None, file)
    for _ in range(2):
        assert take(places)
        file.touch()
        assert places.is_draining
        assert not take(places)
        file.unlink()
        assert not places.is_draining


def test_a_drained_process_is_drained_without_its_file_too(tmp_path: Path) -> None:
    places = Places(None, tmp_path / "drain")
    places.drain()
    assert not take(places)


def test_a_file_that_cannot_be_looked_for_turns_nobody_away(tmp_path: Path) -> None:
    places = Places(None, tmp_path / ("x" * 300))
    assert not places.is_draining
    assert take(places)
