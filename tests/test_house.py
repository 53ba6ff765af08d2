"""The rules of the house, checked on its own source."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import django
import pytest
from django.conf import settings

import oneai_middleware

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "oneai_middleware"

# From the ground up: a module imports from floors below its own, and from its own floor.
# A name stands for a module or for a whole package; the longest that fits counts.
FLOORS = [
    ("errors", "secret", "per_process", "servers"),
    ("accounts", "announcements", "redis_server", "transactions"),
    ("redis_announcements",),
    ("protocol",),
    ("tokens",),
    ("database.patience", "database.prepared", "database.tables"),
    ("database.postgresql", "database.schema"),
    ("database.kinds", "database.writer"),
    ("database.engine",),
    ("key_stores.base", "rate_limiters.base", "ledgers.base", "backends.base"),
    ("testing",),
    ("key_stores", "rate_limiters", "ledgers", "backends"),
    ("catalog", "cooldown"),
    ("settings",),
    ("plugins",),
    ("providers",),
    ("attempt",),
    ("call",),
    ("telemetry", "places", "settlements"),
    ("admission",),
    ("auth",),
    ("dispatch",),
    ("relay",),
    ("endpoints",),
    ("gateway",),
    ("middleware",),
    ("cli",),
    ("integrations",),
    ("wsgi", "__main__", "__init__"),
]

# Who may know a library that not everybody has or that we may want to replace.
HOMES = {
    "msgspec": ("protocol.json",),
    "requests": ("backends.openai",),
    "urllib3": ("backends.openai",),
    "cachetools": ("key_stores.cached",),
    "pytest": ("testing",),
    "flask": ("integrations.flask",),
    "click": ("integrations.flask",),
    "django": ("integrations.django",),
    "redis": ("redis_server",),
    "sqlalchemy": ("database", "key_stores.sql", "ledgers.sql", "ledgers.statements"),
    "alembic": ("database",),
    "psycopg": ("database.postgresql",),
    "pymysql": (),
    "gevent": (),
    "gunicorn": (),
}

# Modules that do their work when they are imported.
ACTING = {"__main__", "wsgi"}

# What was once run on somebody's tables stays as it is; Alembic imports it by itself.
FILES = sorted(
    file for file in PACKAGE.rglob("*.py") if PACKAGE / "database/migrations" not in file.parents
)
FAMILIES = {
    "key_stores": "KeyStore",
    "rate_limiters": "RateLimiter",
    "ledgers": "Ledger",
    "backends": "Backend",
}
LONGEST_FUNCTION, LONGEST_FILE = 50, 450


def name_of(file: Path) -> str:
    """The module's dotted name below the package; a package goes by its own."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(file): ast.parse(file.read_text()) for file in FILES}


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def imported(module: str) -> Iterator[str]:
    """The modules that ``module`` imports anywhere in it, ours below the package."""
    file = PACKAGE.joinpath(*module.split("."))
    here = ["oneai_middleware", *module.split(".")]
    package = here if file.is_dir() else here[:-1]
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
            for alias in node.names:
                below = f"{source}.{alias.name}".removeprefix("oneai_middleware.")
                yield f"oneai_middleware.{below}" if below in MODULES else source


def ours(module: str) -> set[str]:
    """The modules of the package that ``module`` imports."""
    names = {name.partition(".")[2] for name in imported(module) if is_in(name, "oneai_middleware")}
    return {name or "__init__" for name in names} - {module}


def floor(module: str) -> int:
    fitting = [
        (len(place), number)
        for number, places in enumerate(FLOORS)
        for place in places
        if is_in(module, place)
    ]
    assert fitting, f"{module} has no floor yet: give it one in FLOORS"
    return max(fitting)[1]


@pytest.fixture(scope="module", autouse=True)
def _in_a_django_project() -> None:
    """Where some of the modules live; other tests may have made one."""
    if not settings.configured:
        names = ("admin", "auth", "contenttypes", "messages", "sessions")
        apps = [
            *(f"django.contrib.{name}" for name in names),
            "oneai_middleware.integrations.django",
        ]
        settings.configure(INSTALLED_APPS=apps)
        django.setup()


# --- who knows whom -------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert {name for name in ours(module) if floor(name) > floor(module)} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_of_a_family_knows_only_the_records_the_wire_and_the_errors(family: str) -> None:
    allowed = ("accounts", "announcements", "protocol", "errors", "secret")
    known = ours(f"{family}.base")
    assert {name for name in known if not any(is_in(name, place) for place in allowed)} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_knows_another(family: str) -> None:
    others = set(FAMILIES) - {family}
    for module in MODULES:
        if is_in(module, family):
            assert not [name for name in ours(module) if any(is_in(name, o) for o in others)]


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_known_at_its_home_alone(library: str) -> None:
    users = {module for module in MODULES for name in imported(module) if is_in(name, library)}
    homes = HOMES[library]
    assert {user for user in users if not any(is_in(user, home) for home in homes)} == set()
    assert bool(users) == bool(homes), "a home that nobody lives in"


# --- what an import does ----------------------------------------------------------

# Opened files are told apart by their names: importing reads source and nothing else.
WATCHED = """
import os, sys, threading
import urllib3  # which binds a socket when imported, to see whether there is IPv6
seen = []
def hook(event, args):
    if event.startswith("socket."):
        seen.append(event)
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so", ".pth")):
        seen.append(f"open {args[0]}")
descriptors = lambda: sorted(os.listdir("/proc/self/fd"))
before = descriptors()
sys.addaudithook(hook)
%s
print(seen, threading.active_count() == 1, before == descriptors())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def watch(source: str) -> tuple[str, set[str]]:
    """What ``source`` does in a process of its own, and which packages it loads."""
    command = [sys.executable, "-c", WATCHED % source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, _, loaded = done.stdout.partition("\n")
    return said, set(loaded.split())


HOSTS = {"flask", "django", "redis", "sqlalchemy", "gevent", "gunicorn", "pytest", "openai"}

linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files in /proc")


@linux
def test_importing_the_package_starts_opens_and_loads_nothing() -> None:
    said, loaded = watch("import oneai_middleware")
    assert said == "[] True True"
    assert not loaded & HOSTS


@linux
def test_mounting_a_gateway_starts_no_thread_and_opens_no_socket() -> None:
    said, loaded = watch(
        "from oneai_middleware import OneAIMiddleware\n"
        "OneAIMiddleware(None, providers={'deepseek': {'api_key': 'sk-1'}})\n"
        "seen = [event for event in seen if not event.startswith('open ')]"
    )
    assert said == "[] True True"
    assert not loaded & HOSTS


# --- names and words ----------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_listed_in_order_and_none_is_missing(module: str) -> None:
    tree = MODULES[module]
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    imports = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    ]
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    # A module that only imports is there to offer what it imports.
    if listed or (imports and not defines and module not in ACTING):
        assert listed == [sorted(set(imports))]


# What Django's metaclasses put into classes.
DJANGOS = {"get_period_display", "media", "objects"}


def documented(module: str) -> Iterator[tuple[str, object]]:
    """Everything public that ``module`` defines, with its path."""
    found = importlib.import_module(
        "oneai_middleware" if module == "__init__" else f"oneai_middleware.{module}"
    )
    yield module, found
    for name, value in vars(found).items():
        if name.startswith("_") or getattr(value, "__module__", None) != found.__name__:
            continue
        if inspect.isclass(value):
            yield f"{module}.{name}", value
            for part, method in vars(value).items():
                is_code = inspect.isroutine(method) or isinstance(method, property)
                if is_code and not part.startswith("_"):
                    yield f"{module}.{name}.{part}", getattr(value, part)
        elif inspect.isroutine(value):
            yield f"{module}.{name}", value


@pytest.mark.parametrize("module", sorted(set(MODULES) - ACTING))
def test_everything_public_says_what_it_is(module: str) -> None:
    # A method that its base class documents needs no words of its own; pytest's
    # tests and fixtures speak by their names.
    silent = [
        path
        for path, value in documented(module)
        if not inspect.getdoc(value)
        and not path.rpartition(".")[2].startswith("test_")
        and path.rpartition(".")[2] not in DJANGOS
        and type(value).__name__ != "FixtureFunctionDefinition"
    ]
    assert silent == []


# --- sizes ----------------------------------------------------------------------------


def sizes() -> Iterator[tuple[str, int]]:
    """Every function and its lines, docstring not counted."""
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                is_docstring = ast.get_docstring(node) is not None
                words = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
                yield f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1 - words


def test_functions_are_short() -> None:
    assert [found for found in sizes() if found[1] > LONGEST_FUNCTION] == []
    lengths = sorted(lines for _, lines in sizes())
    assert lengths[len(lengths) * 9 // 10] < 40


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST_FILE


# --- the package around it --------------------------------------------------------------


@pytest.fixture
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_every_entry_point_can_be_imported(setup: configparser.ConfigParser) -> None:
    groups = setup["options.entry_points"]
    assert "console_scripts" in groups
    for group, lines in groups.items():
        for line in lines.strip().splitlines():
            name, _, value = line.partition("=")
            part = EntryPoint(name.strip(), value.strip(), group).load()
            assert callable(part)


# These take another part or a function, so no word in the settings can name them.
NOT_NAMED = {
    *("BookkeepingLedger", "CachedKeyStore", "FunctionBackend"),
    *("DividedRateLimiter", "GuardedRateLimiter", "ShadowRateLimiter"),
}


def below(kind: type) -> Iterator[type]:
    """The classes that inherit from ``kind``, at any remove."""
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_implementation_is_offered_by_an_entry_point(
    setup: configparser.ConfigParser, family: str
) -> None:
    offered = setup["options.entry_points"][f"oneai_middleware.{family}"]
    base = getattr(importlib.import_module(f"oneai_middleware.{family}.base"), FAMILIES[family])
    for module in MODULES:
        if is_in(module, family):
            importlib.import_module(f"oneai_middleware.{module}")
    for kind in below(base):
        is_public = is_in(kind.__module__, "oneai_middleware") and kind.__name__[0] != "_"
        if is_public and kind.__name__ not in NOT_NAMED:
            assert f":{kind.__name__}\n" in f"{offered}\n"


def test_the_changelog_names_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert oneai_middleware.__version__ in changes


TEXTS = {".py", ".md", ".toml", ".cfg", ".txt", ".html", ".css", ".lua", ""}


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    folders = ("oneai_middleware", "tests", "examples", "docs", "benchmarks", ".ci")
    files = [*ROOT.iterdir(), *(file for name in folders for file in (ROOT / name).rglob("*"))]
    own = re.compile(r"(?<![\w.$})])/(?:home|root|Users|work|tmp)/\w")
    for file in files:
        if "node_modules" in file.parts:  # others' work, installed for the tests
            continue
        if file.is_file() and file.suffix in TEXTS and file.name not in (".coverage", ".git"):
            found = own.search(file.read_text(encoding="utf-8"))
            assert found is None, f"{file}: {found}"
