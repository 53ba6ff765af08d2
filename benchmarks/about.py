"""When and where a run was, and with what."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .contenders import portkey_script
from .processes import CORES

OURS = ("oneai_middleware", "gunicorn", "gevent", "granian", "werkzeug", "requests", "urllib3")


def about(**options: Any) -> dict[str, Any]:
    """All that a reader must know of a run; ``options`` are those it was started with."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{len(CORES)} cores, {_processor()}, {platform.system()}",
        "load": round(os.getloadavg()[0], 1),
        "versions": {"Python": platform.python_version(), **_ours(), **_others()},
        **options,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _ours() -> dict[str, str]:
    found = {}
    for name in OURS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _others() -> dict[str, str]:
    """The other gateways, where they are installed."""
    found = {}
    with contextlib.suppress(KeyError, OSError, subprocess.SubprocessError):
        python = Path(os.environ["ONEAI_BENCH_LITELLM"]).with_name("python")
        code = "from importlib.metadata import version; print(version('litellm'))"
        found["LiteLLM"] = _said(str(python), "-c", code)
    with contextlib.suppress(KeyError, OSError, subprocess.SubprocessError):
        script = portkey_script(os.environ["ONEAI_BENCH_PORTKEY"])
        found["Portkey"] = json.loads((script.parent.parent / "package.json").read_text())[
            "version"
        ]
        found["Node.js"] = _said("node", "--version")
    return found


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
