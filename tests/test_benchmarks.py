"""What the benchmarks count is what was there; and what they show is what they counted."""

from __future__ import annotations

import asyncio
import importlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], Any]]:
    """Modules of ``benchmarks/``, which is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


# --- callers ------------------------------------------------------------------------


class Connection:
    """What a caller asks through."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_open = True

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.is_open = False


@pytest.fixture
def hear(load: Callable[[str], Any]) -> Callable[..., Any]:
    """Let a caller who wants so many pieces hear some bytes; what was counted."""
    callers = load("callers")

    def hear(*heard: bytes, pieces: int = 3) -> Any:
        tally = callers.Tally(0.0, time.monotonic() + 60)
        over: list[Any] = []
        caller = callers.StreamCaller(pieces, b"?", tally, over.append)
        connection = Connection()
        caller.connection_made(connection)
        for data in heard:
            caller.data_received(data)
        # Whoever is content asks again, and whoever is not leaves.
        assert (connection.sent, connection.is_open) == (
            (b"?", False) if tally.errors else (b"??", True)
        )
        assert len(over) == tally.errors.total()
        return tally

    return hear


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_a_stream_is_counted_alike_however_it_is_cut(
    load: Callable[[str], Any], hear: Callable[..., Any], size: int
) -> None:
    whole = load("fast_provider").at_once(3)
    tally = hear(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert (tally.answers, tally.pieces, len(tally.first)) == (1, 3, 1)
    assert not tally.delays


@pytest.mark.parametrize("size", [1, 5, 10**6])
def test_an_event_that_says_when_it_was_sent_is_timed_once(
    load: Callable[[str], Any], hear: Callable[..., Any], size: int
) -> None:
    provider = load("fast_provider")
    stamp = (provider.MARK % (time.monotonic_ns() - 10**9)).encode()
    stamped = provider.SAYING.replace(provider.UNSTAMPED, stamp)
    whole = provider.STREAM + stamped * 2 + provider.END
    tally = hear(*(whole[at : at + size] for at in range(0, len(whole), size)), pieces=2)
    assert len(tally.delays) == 2
    assert min(tally.delays) >= 1


def test_a_stream_that_is_not_what_was_asked_for_is_an_error(
    load: Callable[[str], Any], hear: Callable[..., Any]
) -> None:
    provider = load("fast_provider")
    assert list(hear(provider.at_once(2)).errors) == ["2 pieces instead of 3"]
    without = provider.STREAM + provider.SAYING * 3 + b"0\r\n\r\n"
    assert list(hear(without).errors) == ["no [DONE]"]
    refusal = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"
    assert "503" in next(iter(hear(refusal).errors))


def test_whoever_asks_a_bare_relay_gets_whole_answers(load: Callable[[str], Any]) -> None:
    call = load("callers").call
    options = {"callers": 2, "seconds": 0.05, "warm": 0.0, "patience": 60.0}
    with (
        load("servers").started(["benchmarks.fast_provider"]) as said,
        load("contenders").bare(int(said.readline()), "gthread", "requests") as served,
    ):
        answers = asyncio.run(call(served, "answer", **options))
        streams = asyncio.run(call(served, "5 at 0", **options))
        paced = asyncio.run(call(served, "5 at 100", **options))
        assert served.memory > 1000
    # Nobody leaves who has not had an answer to the end, however slow the machine is.
    for tally in (answers, streams, paced):
        assert not tally.errors
        assert not tally.unfinished
    assert answers.answers == len(answers.times)
    assert min(len(streams.first), len(paced.first)) >= 2
    assert all(delay > 0 for delay in paced.delays)


# --- the steps ------------------------------------------------------------------------


def test_every_step_of_the_road_is_found_and_timed(load: Callable[[str], Any]) -> None:
    steps = load("steps")
    costs = steps.costs(calls=4, rounds=1)
    assert [name for name in steps.STEPS if f"- {name}" not in costs] == []
    assert len(costs) == len(steps.STEPS) + 3


# --- figures and what is shown of them --------------------------------------------------


@pytest.fixture
def results(load: Callable[[str], Any]) -> Any:
    about = {
        "date": "2026-01-31",
        "machine": "2 cores",
        "load": 0.1,
        "rounds": 3,
        "seconds": 3.0,
        "versions": {"Python": "3.11"},
        "transports": ["requests"],
    }
    results = load("results").Results(about)
    for bare, ours in ((100.0, 80.0), (50.0, 39.0), (200.0, 150.0)):
        results.add("answers", "bare/gthread/requests", {"per_s": bare})
        results.add("answers", "gateway/gthread/requests", {"per_s": ours})
        results.add("answers", "portkey", {"per_s": 70.0})
    return results


def test_a_ratio_is_of_the_same_round(results: Any) -> None:
    ours, bare = "gateway/gthread/requests", "bare/gthread/requests"
    assert results.median("answers", ours, "per_s") == 80
    assert results.ratio("answers", "per_s", ours, bare) == 0.78
    assert results.difference("answers", "per_s", ours, bare) == -20
    assert math.isnan(results.ratio("answers", "per_s", ours, "litellm"))


def test_results_are_kept_whole(load: Callable[[str], Any], results: Any, tmp_path: Path) -> None:
    results.add("paced", "direct", {"p50_ms": math.nan})
    results.save(tmp_path / "results.json")
    again = load("results").Results.load(tmp_path / "results.json")
    assert math.isnan(again.figures["paced"]["direct"].pop("p50_ms")[0])
    del results.figures["paced"]["direct"]["p50_ms"]
    assert again == results


def test_the_report_marks_what_is_missed(load: Callable[[str], Any], results: Any) -> None:
    lines = load("report").report(results).splitlines()
    assert (
        "| answers a second: of the bare relay on requests | ≥ 0.75 x | 0.78 | reached |" in lines
    )
    assert "| answers a second: of Portkey, over requests | ≥ 1.2 x | 1.14 | **missed** |" in lines
    assert any("LiteLLM" in line and "not measured" in line for line in lines)
    assert "| gateway/gthread/requests | 80 | 0.78 |" in lines


def test_the_report_is_put_between_its_marks(load: Callable[[str], Any], tmp_path: Path) -> None:
    report = load("report")
    page = tmp_path / "page.md"
    page.write_text(f"before {report.BEGIN} old {report.END} after", encoding="utf-8")
    for text in ("first\n", "second\n"):
        report.put_into(page, text)
    assert page.read_text(encoding="utf-8") == (
        f"before {report.BEGIN}\nsecond\n{report.END} after"
    )
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no"):
        report.put_into(page, "text")


def test_the_report_has_its_place_in_the_readme(load: Callable[[str], Any]) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert load("report").BEGIN in text
    assert load("report").END in text


def test_bars_are_as_long_as_their_values(load: Callable[[str], Any], results: Any) -> None:
    root = ElementTree.fromstring(load("report").picture(results))
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect")]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[1:7] == ["Portkey", "70", "oneai, memory", "80", "bare relay", "100"]
    assert [round(width / widths[2], 2) for width in widths] == [0.7, 0.8, 1.0]
    ours = [bar.attrib["class"] for bar in root.iter(f"{SVG}rect")]
    assert ours == ["bar", "bar ours", "bar"]


def test_what_a_chart_says_cannot_break_it(load: Callable[[str], Any]) -> None:
    chart = load("chart")
    drawn = chart.chart([chart.Panel("a < b & c", [chart.Bar('"x"', 0.0)])])
    assert [text.text for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")] == [
        "a < b & c",
        '"x"',
        "0",
    ]
