"""A Python that has imported what programs import, and forks for each of them.

Tests start it once and ask it, over the socket of the number that it is given, for one
program after the other: a message is what to run, in JSON, and brings along the program's
standard input, output and error, and a socket that is told its process id at first and its
exit status in the end. A program sees what it would see in a Python of its own, except that
its imports are done; what is imported here needs no settings and starts no threads.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import types
import warnings
from pathlib import Path
from typing import Any

MODULES = [
    "alembic.command",
    "alembic.autogenerate",
    "alembic.migration",
    "alembic.config",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.mysql.mariadb",
    "psycopg",
    "pymysql",
    "flask",
    "flask.cli",
    "gunicorn.app.wsgiapp",
    "gunicorn.workers.gthread",
    "gunicorn.workers.sync",
    "waitress",
    "waitress.runner",
    "werkzeug.serving",
    "werkzeug.test",
    "django.contrib.staticfiles.handlers",
    "django.core.management",
    "django.core.management.commands",
    "django.core.servers.basehttp",
    "django.core.wsgi",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.executor",
    "django.db.migrations.autodetector",
    "django.db.models",
    "django.forms",
    "django.template",
    "django.test.client",
    "django.test.runner",
    "django.urls",
    "oneai_middleware.backends.echo",
    "oneai_middleware.backends.openai",
    "oneai_middleware.cli",
    "oneai_middleware.database.schema",
    "oneai_middleware.integrations.flask",
    "oneai_middleware.key_stores.sql",
    "oneai_middleware.ledgers.sql",
]


def main(control: socket.socket) -> None:
    """Fork for every message; returns in the programs, once they are done."""
    path = sys.path[1:]  # without this file's folder
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not message:  # whoever asked is gone
            return
        if os.fork() == 0:
            control.close()
            *standard, told = files
            asked = json.loads(message)
            if keep(socket.socket(fileno=told), asked["session"]):
                become(asked, standard, path)
                run(asked["words"])
                return
        for file in files:
            os.close(file)
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            pass


def keep(told: socket.socket, own_session: bool) -> bool:
    """Fork the program, in which this is true, and tell what becomes of it."""
    program = os.fork()
    if program == 0:
        told.close()
        if own_session:
            os.setsid()
        return True
    for number in range(3):
        os.close(number)
    told.send(b"%d" % program)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    told.send(b"%d" % status)
    os._exit(0)


def become(asked: dict[str, Any], standard: list[int], path: list[str]) -> None:
    """Have the files, the folder, the environment and the path of the program."""
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=at_once)
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    more = os.environ.get("PYTHONPATH", "")
    sys.path[:] = [*filter(None, more.split(os.pathsep)), *path]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    if os.environ.get("PYTHONWARNINGS"):
        warn(os.environ["PYTHONWARNINGS"])


def warn(action: str) -> None:
    sys.warnoptions.append(action)
    warnings.simplefilter(action)  # type: ignore[arg-type]


def run(words: list[str]) -> None:
    """What ``python`` does with these words: ``[-W action] (-c code | -m module | file) …``."""
    while words[0] == "-W":
        warn(words[1])
        words = words[2:]
    here = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy._run_module_as_main(words[1])
    elif words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), vars(here))
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        code = compile(Path(words[0]).read_bytes(), words[0], "exec")
        here.__file__ = words[0]
        exec(code, vars(here))


if __name__ == "__main__":
    this = sys.modules["__main__"]  # a program has one of its own, and this one stays
    main(socket.socket(fileno=int(sys.argv[1])))
