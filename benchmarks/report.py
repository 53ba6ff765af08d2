"""The figures of a run as Markdown, and where they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from .chart import Bar, Panel, chart
from .goals import fastest, goals
from .results import Results

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"

TITLES = {
    "answers": "Answers of 1 KB in one piece, 32 callers",
    "alone": "Answers of 1 KB in one piece, 1 caller",
    "streams": "8 streams of 2,000 events that come all at once",
    "first": "The first event of a stream, 1 caller",
    "paced": "50 streams of 20 events a second",
    "held": "Streams held, 2 events a second each: 500 on threads, 1,000 on gevent",
    "start": "From the start to the first answer, and what then is resident",
    "million": "A million keys of others, 32 callers",
    "steps": "In one process, with a backend that has its answers ready",
    "size": "Installed",
}
"""Of every measure, in the order of the report."""

COLUMNS = {
    "per_s": "per s",
    "cpu_us": "CPU µs each",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "kb_each": "KB each",
    "errors": "errors",
    "s": "s",
    "mb": "MB",
    "us": "µs",
    "packages": "packages",
}

# In the chart, over the default transport, which is the first, and the fastest; who is not ours
# has another colour.
SHOWN = {
    "LiteLLM": "litellm",
    "Portkey": "portkey",
    "oneai, PostgreSQL and Redis": "postgresql/gthread/{first}",
    "oneai, SQLite": "sqlite/gthread/{first}",
    "oneai, memory": "gateway/gthread/{first}",
    "oneai, {best}": "gateway/gthread/{best}",
    "oneai, {best}, on granian": "gateway/granian/{best}",
    "bare relay": "bare/gthread/{first}",
    "bare relay, {best}": "bare/gthread/{best}",
}
OTHERS = ("litellm", "portkey", "bare")

# Those that are also given as a multiple of the bare relay's.
COMPARED = {"per_s", "cpu_us", "p50_ms"}


def report(results: Results) -> str:
    """All of it."""
    parts = [_about(results), *_goals(results)]
    for measure in TITLES:
        if results.contenders(measure):
            parts += ["", f"**{TITLES[measure]}**", "", *_figures(results, measure)]
    if results.absent:
        parts += ["", *(f"`{name}`: {why}." for name, why in results.absent.items())]
    return "\n".join(parts) + "\n"


def _about(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    faults = f" **Wrong or missing answers: {results.errors}.**" if results.errors else ""
    return (
        f"{about['date']}, on {about['machine']}; other work made a load of {about['load']:g}. "
        f"Rounds: {about['rounds']}, of {about['seconds']:g} s. {versions}.{faults}"
    )


def _goals(results: Results) -> Iterator[str]:
    yield from ("", "| | must be | is | |", "| --- | ---: | ---: | --- |")
    for goal in goals(results, results.about["transports"]):
        yield f"| {goal.what} | {goal.must} | {_number(goal.value)} | {goal.verdict} |"


def _figures(results: Results, measure: str) -> Iterator[str]:
    names = results.contenders(measure)
    figures = list(results.figures[measure][names[0]])
    compared = [each for each in figures if each in COMPARED] if measure != "start" else []
    compared = compared if any(_bare_of(name) in names for name in names) else []
    heads = [COLUMNS[each] for each in figures] + [f"{COLUMNS[each]}: of bare" for each in compared]
    yield _row(["", *heads])
    yield _row(["---", *["---:"] * len(heads)])
    for name in names:
        cells = [_number(results.median(measure, name, each)) for each in figures]
        ratios = [_ratio(results, measure, each, name) for each in compared]
        yield _row([name, *cells, *ratios])


def _ratio(results: Results, measure: str, figure: str, name: str) -> str:
    other = _bare_of(name)
    if other == name or name == "direct":
        return ""
    return _number(results.ratio(measure, figure, name, other))


def _bare_of(name: str) -> str:
    """The bare relay on the same server and client; on threads and requests for others."""
    _, _, rest = name.partition("/")
    return f"bare/{rest}" if rest else "bare/gthread/requests"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """With three digits at least."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def put_into(page: Path, text: str) -> None:
    """Put the report into a page, between its marks.

    :raises ValueError: the page has none.
    """
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: has no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def picture(results: Results) -> str:
    """The chart of answers and events a second."""
    return chart(
        [
            Panel(
                "Answers of 1 KB a second, one core, 32 callers",
                _bars(results, "answers"),
            ),
            Panel(
                "Streamed events a second, one core, 8 streams",
                _bars(results, "streams"),
            ),
        ]
    )


def _bars(results: Results, measure: str) -> list[Bar]:
    """Those of ``SHOWN`` who took part, each with its median."""
    transports = results.about["transports"]
    best, first = fastest(results, transports), transports[0]
    labels: dict[str, str] = {}
    for label, name in SHOWN.items():
        labels.setdefault(name.format(best=best, first=first), label.format(best=best))
    values = {name: results.median(measure, name, "per_s") for name in labels}
    return [
        Bar(labels[name], value, not name.startswith(OTHERS))
        for name, value in values.items()
        if not math.isnan(value)
    ]
