"""A gevent worker, whose calls all share one thread: the database must not keep it busy."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from oneai_middleware.database.tables import BALANCES

CALLS = 20


def test_calls_overlap_and_none_waits_for_anothers_database(
    shop: Any, serve: Any, call: Any, provider: Any, completion: Any, eventually: Any
) -> None:
    shop.top_up(10**12)
    server = serve("-k", "gevent", "--workers", "1")
    together = threading.Barrier(CALLS)

    def respond(turn: Any) -> None:
        together.wait(30)  # nobody is answered before all have asked
        turn.answer(completion("hello"))

    def ask(caller: Any) -> dict[str, Any]:
        while caller.ask() == 503:  # nobody was patient enough: the machine is busy
            caller.leave()
        return dict(caller.json)

    provider.respond = respond
    with ThreadPoolExecutor(CALLS) as pool:
        answers = list(pool.map(ask, [call(server) for _ in range(CALLS)]))
    assert all("choices" in answer for answer in answers)
    with ThreadPoolExecutor() as pool, shop.database.transaction() as other:
        other.execute(sa.update(BALANCES).values(held=BALANCES.c.held))
        waiting = [pool.submit(call(server).ask) for _ in range(3)]
        pages = 0
        while not all(each.done() for each in waiting):
            assert server.get("/page") == "the host's own page"
            pages += 1
        assert [each.result() for each in waiting] == [503] * 3
    assert pages > 10
    eventually(lambda: not shop.has_open_holds())
    assert len(shop.rows) == CALLS
    shop.assert_books_are_exact()
