"""All figures of one run, and what can be said of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

Rounds = dict[str, list[float]]
"""By the figure's name, one value for each round."""


@dataclass
class Results:
    """Figures by measure and contender, one for each round. ``about`` says where and when;
    ``absent``, by contender, why it did not take part."""

    about: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, Rounds]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    errors: int = 0

    def add(self, measure: str, contender: str, figures: Mapping[str, float]) -> None:
        """Note one round."""
        rounds = self.figures.setdefault(measure, {}).setdefault(contender, {})
        for name, value in figures.items():
            rounds.setdefault(name, []).append(value)

    def contenders(self, measure: str) -> list[str]:
        """Those who took part in it."""
        return list(self.figures.get(measure, {}))

    def median(self, measure: str, contender: str, figure: str) -> float:
        """The middle one of all rounds; NaN if there is none."""
        return middle(self._rounds(measure, contender, figure))

    def ratio(self, measure: str, figure: str, one: str, other: str) -> float:
        """What ``one`` has as a multiple of what ``other`` has in the same round; the middle
        one of all rounds."""
        pairs = zip(
            self._rounds(measure, one, figure), self._rounds(measure, other, figure), strict=False
        )
        return middle([a / b for a, b in pairs if b])

    def difference(self, measure: str, figure: str, one: str, other: str) -> float:
        """How much more ``one`` has than ``other`` in the same round; the middle one."""
        pairs = zip(
            self._rounds(measure, one, figure), self._rounds(measure, other, figure), strict=False
        )
        return middle([a - b for a, b in pairs])

    def _rounds(self, measure: str, contender: str, figure: str) -> list[float]:
        return self.figures.get(measure, {}).get(contender, {}).get(figure, [])

    def save(self, path: Path) -> None:
        """Write them down as JSON."""
        path.write_text(json.dumps(rounded(asdict(self)), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Those that were written down."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        for contenders in kept["figures"].values():
            for rounds in contenders.values():
                for name, values in rounds.items():
                    rounds[name] = [math.nan if value is None else value for value in values]
        return cls(**kept)


def middle(values: list[float]) -> float:
    """The median of what was measured; NaN if nothing was."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def rounded(value: Any) -> Any:
    """The same with four digits of every figure, and nothing for NaN: JSON has none."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value
