"""What a server's processes cost, as the system counts it, and which core they run on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))

SERVING = CORES[-1]
"""The core of the server that is measured; all others share the rest."""


def stay_off_its_core() -> None:
    """Leave the server's core to it; who is started from here does the same."""
    os.sched_setaffinity(0, set(CORES[:-1] or CORES))


@dataclass
class Served:
    """A server that answers. ``session`` is the process that its others come from, and 0
    where nobody asks what it costs."""

    port: int
    session: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    start: float = 0.0
    """Seconds from its start to its first answer."""

    @property
    def cpu(self) -> float:
        """Seconds that its processes have worked."""
        return sum(_cpu(process) for process in self._processes()) / TICK

    @property
    def memory(self) -> int:
        """KB that are resident of the largest of them, which is the one that serves."""
        return max((_resident(process) for process in self._processes()), default=0)

    def _processes(self) -> list[int]:
        numbers = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
        return [each for each in numbers if self.session and self._has(each)]

    def _has(self, process: int) -> bool:
        return _fields(process)[3:4] == [str(self.session)]


def _cpu(process: int) -> int:
    fields = _fields(process)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _resident(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def _fields(process: int) -> list[str]:
    """The fields of its ``stat`` from the state on; none if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
