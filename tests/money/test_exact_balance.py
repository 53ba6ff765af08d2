"""Many processes against a balance for exactly so many calls."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.tokens import estimate_prompt

PROCESSES = 32
CHAT: dict[str, Any] = {
    "model": "bot",
    "messages": [{"role": "user", "content": "one two three four"}],
    "max_tokens": 4,
}
COST = estimate_prompt(CHAT) * 1_000 + 4 * 2_000
"""What is held for such a call and what it costs: the echo's every word is a token."""

# Each process has a gateway of its own and calls it until the money is gone. It says how
# many calls were answered and how many had to be sent anew, for want of patience.
CALLING = """
import collections, json, os, random, sys, time
from werkzeug.test import Client
from oneai_middleware import Gateway
import oneai_middleware.database.schema, oneai_middleware.ledgers.sql

settings, secret, chat, processes = map(json.loads, sys.argv[1:])

def call_until_the_money_is_gone():
    client = Client(Gateway(**settings))
    statuses = collections.Counter()
    while not statuses[402]:
        reply = client.post("/v1/chat/completions", json=chat, headers=headers)
        statuses[reply.status_code] += 1
        if reply.status_code in (429, 503):
            time.sleep(random.uniform(0.05, 0.25))
    return statuses

headers = {"Authorization": "Bearer " + secret}
go, said = os.pipe(), os.pipe()
for number in range(processes):
    if os.fork() == 0:
        os.close(go[1])
        os.read(go[0], 1)
        os.write(said[1], (json.dumps(call_until_the_money_is_gone()) + "\\n").encode())
        os._exit(0)
print("ready", flush=True)
sys.stdin.readline()
os.close(go[1])
os.close(said[1])
for line in os.fdopen(said[0]):
    print(line, end="", flush=True)
"""


@pytest.mark.parametrize("calls", [48, pytest.param(256, marks=pytest.mark.soak)])
def test_exactly_so_many_calls_are_answered_as_the_balance_is_for(
    shop: Any, warm: Any, calls: int
) -> None:
    shop.top_up(calls * COST)
    settings = {**shop.options, "providers": {"scripted": {"backend": "echo"}}}
    arguments = [{**settings, "key_store": shop.url}, shop.secret, CHAT, PROCESSES]
    process = warm.talk(["-c", CALLING, *map(json.dumps, arguments)])
    with process.stdin, process.stdout, ThreadPoolExecutor() as pool:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        lines = pool.submit(process.stdout.readlines)
        while not lines.done():
            with contextlib.suppress(StoreUnavailable):  # all of them want this row
                balance = shop.balance
                assert balance.available + balance.held + balance.spent == calls * COST
                assert min(balance) >= 0
            wait([lines], 0.02)
    assert process.wait(60) == 0
    statuses = [json.loads(line) for line in lines.result()]
    assert len(statuses) == PROCESSES
    assert {status for each in statuses for status in each} <= {"200", "402", "429", "503"}
    assert sum(each.get("200", 0) for each in statuses) == calls
    assert shop.balance == Balance(spent=calls * COST, topped_up=calls * COST)
    assert len(shop.rows) == calls
    shop.assert_books_are_exact()
