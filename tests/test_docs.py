"""What the README and the pages of ``docs/`` show is run as it stands there.

A page's Python is run from top to bottom, in one process of its own; a ``text`` block
after it is what it prints, a ``ConfigurationError`` included. A block below
``<!-- file: NAME -->`` is a file (the second of a name is added to the first), ``toml`` is
a settings file, ``console`` are commands with what they print: ``…`` stands for
anything. What is called ``sh`` starts servers and sets things up.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from waitress.adjustments import Adjustments
from werkzeug.serving import make_server

from oneai_middleware import ConfigurationError, Gateway, OneAIMiddleware, errors
from oneai_middleware.accounts import TIERS
from oneai_middleware.catalog import read_shipped
from oneai_middleware.cli import main
from oneai_middleware.cli.demo import demo_gateway
from oneai_middleware.cli.settings import settings_table
from oneai_middleware.plugins import GROUP_PREFIX, GROUPS
from oneai_middleware.secret import new_secret

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "oneai_middleware"
README = ROOT / "README.md"
README_TEXT = README.read_text(encoding="utf-8")
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

KEYS = ("ALICE_KEY", "BOB_KEY")
BLOCK = re.compile(r"(?:<!-- (file|run): (\S+) -->\n+)?^```(\w*)\n(.*?)^```$", re.S | re.M)
END = "\N{END OF TRANSMISSION}"

# What stands in for the reader's own project, which the pages add to.
PROJECT = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
        execute_from_command_line(sys.argv)
        """,
    "project/__init__.py": "",
    "project/settings.py": """
        SECRET_KEY = "of the documentation's tests"
        ALLOWED_HOSTS = ["shop.example"]
        ROOT_URLCONF = "project.urls"
        INSTALLED_APPS = [
            "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
        ]
        MIDDLEWARE = [
            "django.middleware.gzip.GZipMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        DEBUG = True
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        """,
    "project/wsgi.py": """
        import os
        from django.core.wsgi import get_wsgi_application
        os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
        application = get_wsgi_application()
        """,
    "project/urls.py": """
        from django.http import HttpResponse
        from django.urls import path
        urlpatterns = [path("", lambda request: HttpResponse("The shop's own page."))]
        """,
}

# Names that a page takes for granted, before it; and what must hold after it.
BEFORE = {
    "README.md": """
        def application(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"The application's own page."]
        """,
}
AFTER = {
    "README.md": """
        import os
        from werkzeug.test import Client
        from project.wsgi import application as django
        key = {"Authorization": f"Bearer {os.environ['ALICE_KEY']}"}
        question = {"model": "support-bot", "messages": [{"role": "user", "content": "Open?"}]}
        address = "http://shop.example"
        for mounted in (app, application, django):
            client = Client(mounted)
            assert client.get("/", address).status_code == (404 if mounted is app else 200)
            listed = client.get("/oneai/v1/models", address, headers=key).json["data"]
            assert "deepseek-v3" in {model["id"] for model in listed}
        reply = Client(gateway).post("/v1/chat/completions", json=question, headers=key)
        assert reply.json["choices"][0]["message"]["content"] == "You asked: Open?"
        """,
}

# One process runs a page: every block in the same names, an END after each.
RUNNER = """
import json, sys
from oneai_middleware import ConfigurationError
page, end, *blocks = json.load(sys.stdin)
names = {"__name__": "page"}
for code in blocks:
    try:
        exec(compile(code, page, "exec"), names)
    except ConfigurationError as error:
        print(error)
    print(end)
"""


class Block(NamedTuple):
    """A fenced piece of a page; ``mark`` and ``name`` are of the comment above it."""

    mark: str
    name: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run a page in, and the environment that pages speak of."""
    for name, text in PROJECT.items():
        add(tmp_path / name, dedented(text))
    for name in KEYS:
        monkeypatch.setenv(name, new_secret())
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-not-asked-for")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-not-asked-for")
    monkeypatch.setenv("SHOP_SECRET_KEY", "of the documentation's tests")
    for name in ("ONEAI_CONFIG", "DJANGO_SETTINGS_MODULE", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_can_be_done_as_it_stands_there(
    page: Path, project: Path, run: Callable[..., str]
) -> None:
    code: list[str] = [dedented(BEFORE.get(page.name, ""))]
    shown: dict[int, str] = {}
    last = ""
    for block in blocks(page):
        if block.mark == "file":
            add(project / block.name, block.code)
            if block.name == "pyproject.toml":
                install(project)
        elif block.mark == "run":
            assert (page, block.name) == (README, "demo")  # by its own test, below
        elif block.language == "toml":
            (project / "oneai.toml").write_text(block.code, encoding="utf-8")
            run("oneai", "models", "--config", "oneai.toml")  # which builds a gateway
        elif block.language == "python":
            code.append(block.code)
        elif block.language == "text":
            assert last == "python"
            shown[len(code) - 1] = block.code
        elif block.language == "json":
            json.loads(block.code)
        elif block.language == "console":
            for command, output in commands(block.code):
                assert_says(run(*shlex.split(command)), output)
        elif block.language == "sh":
            check_servers(block.code, run)
        last = block.language
    code.append(dedented(AFTER.get(page.name, "")))
    said = run(
        *(sys.executable, "-W", "error", "-c", RUNNER), input=json.dumps([page.name, END, *code])
    )
    for number, printed in enumerate(said.split(END)[:-1]):
        assert_says(printed.removeprefix("\n"), shown.get(number, ""))


def add(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(text)


def dedented(text: str) -> str:
    return "\n".join(line.removeprefix(" " * 8) for line in text.splitlines()) + "\n"


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.soak)])
def run(request: pytest.FixtureRequest) -> Callable[..., str]:
    """What a command prints; it must succeed. Those in Python need not import all anew,
    except in the soak."""
    is_cold = request.param == "cold"
    warm = None if is_cold else request.getfixturevalue("warm")

    def run(*command: str, input: str = "") -> str:
        words = [shutil.which(command[0]) or "", *command[1:]]
        if is_cold or not is_python(Path(words[0])):
            done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=60)
        else:
            done = warm.run(words[Path(words[0]).name.startswith("python") :], input=input)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    return run


def is_python(command: Path) -> bool:
    """Whether it is this environment's Python, or written in it."""
    return (
        command.parent == Path(sys.executable).parent
        and command.name.startswith("python")
        or command.read_bytes().startswith(b"#!%b" % sys.executable.encode()[:-1])
    )


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def assert_says(said: str, shown: str) -> None:
    """``said`` is what the page shows, if it shows anything."""
    if shown:
        pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
        assert re.fullmatch(pattern, said.strip(), re.S), said


def install(project: Path) -> None:
    """What ``pip install .`` does for the entry points of the page's package."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = about["entry-points"]
    assert {group.removeprefix(GROUP_PREFIX) for group in groups} <= set(GROUPS)
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    info = project / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    add(info / "METADATA", f"Name: {about['name']}\nVersion: {about['version']}\n")
    add(info / "entry_points.txt", "\n".join(lines))


def check_servers(text: str, run: Callable[..., str]) -> None:
    """The servers' own commands: gunicorn loads what it names, waitress reads its options."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        settings = [word for word in words if "=" in word and not word.startswith("-")]
        command = words[len(settings) :]
        if command[:1] == ["gunicorn"]:
            run("env", *settings, *command, "--check-config")
        elif command[:1] == ["waitress-serve"]:
            options = Adjustments.parse_args(command[1:])
            assert ":" in str(options)


# --- the demo -----------------------------------------------------------------------


def test_the_readmes_first_lines_of_python_print_what_the_demo_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {name: new_secret() for name in ("free", "pro", "enterprise", "empty")}
    monkeypatch.setenv("ONEAI_API_KEY", keys["free"])
    app = OneAIMiddleware(lambda environ, start_response: [], demo_gateway(keys))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        [code] = [block.code for block in blocks(README) if block.mark == "run"]
        names: dict[str, Any] = {}
        exec(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), names)  # noqa: S102
        names["client"].close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert capsys.readouterr().out == "Write a haiku about AI"


def test_the_readme_sets_up_with_the_two_commands_it_always_had() -> None:
    begin = "python -m venv .venv && .venv/bin/pip install -e "
    assert f"\n{begin}. && .venv/bin/oneai demo\n" in README_TEXT
    assert f'\n{begin}".[test]" && .venv/bin/pytest\n' in README_TEXT


# --- tables that are made from the code -----------------------------------------------


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "configuration.md"], ids=lambda p: p.stem)
def test_a_table_of_settings_is_what_oneai_settings_prints(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["settings"]) == 0
    printed = capsys.readouterr().out
    assert printed == settings_table() + "\n"
    tables = re.findall(r"^\| setting \|.*?\n\n", page.read_text(encoding="utf-8"), re.S | re.M)
    assert tables == [f"{printed}\n"]


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("`providers`", {"providers": {"x": {"zzzzzz": 1}}}),
        ("`models`", {"models": {"deepseek-v3": {"zzzzzz": 1}}}),
        ("`accounts`", {"accounts": {"x": {"zzzzzz": 1}}}),
    ],
)
def test_the_table_of_a_nested_settings_fields_names_them_all(
    section: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Gateway(**options)
    known = str(caught.value).partition("; known: ")[2].split(", ")
    assert sorted(first_cells("configuration.md", section)) == known


def test_the_table_of_commands_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["zzzzzz"])
    known = re.findall(r"'?([\w-]+)'?(?=[,)])", capsys.readouterr().err.partition("choose from")[2])
    listed = [
        cell.removeprefix("oneai ") for cell in first_cells("configuration.md", "The command")
    ]
    assert sorted(listed) == sorted(known)


def test_the_table_of_djangos_checks_names_them_all() -> None:
    source = (PACKAGE / "integrations" / "django" / "checks.py").read_text(encoding="utf-8")
    known = re.findall(r'id="(oneai\.\w+)"', source)
    assert sorted(first_cells("mounting-django.md", "Checks")) == sorted(known)


def test_the_table_of_tiers_has_their_numbers() -> None:
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for name, limits in TIERS.items():
        numbers = ["unlimited" if number is None else f"{number:,}" for number in limits]
        assert f"| {name} | {' | '.join(numbers)} |\n" in text


def test_the_readmes_table_of_models_is_the_catalog() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (\w+) \| (.*?) \| (.*?) \|$", README_TEXT, re.M)
    assert rows == [
        (id, model["owned_by"], thousands(model["context"]), model["input"], model["output"])
        for id, model in read_shipped().models.items()
    ]


def test_the_readmes_table_of_paths_is_what_the_gateway_serves() -> None:
    table = README_TEXT.partition("\n## What callers get\n")[2].partition("\n## ")[0]
    cells = "".join(re.findall(r"^\| (`.*?) \|", table, re.M))
    listed = re.findall(r"`(?:\w+ )?(/.*?)`", cells)
    source = (PACKAGE / "gateway.py").read_text(encoding="utf-8")
    served = re.findall(r'Rule\("(.*?)"', source)
    assert sorted(listed) == sorted(re.sub("<.*>", "{id}", path) for path in served)


def thousands(tokens: int) -> str:
    return f"{tokens // 10**6}M" if tokens >= 10**6 else f"{tokens // 1000}K"


def first_cells(page: str, section: str) -> list[str]:
    """What stands as code in the first cells of the tables below a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", body, re.M)
    return [name for cell in cells for name in re.findall("`(.*?)`", cell)]


def test_the_table_of_errors_names_every_status_type_and_code_there_is() -> None:
    listed = {row[:3] for row in error_rows()}
    assert len(listed) == len(error_rows())
    families = [errors.APIError]
    for family in families:
        families += family.__subclasses__()
    own = {(str(f.status), f.code, f.type) for f in families[1:]}
    assert own <= listed
    # A few errors are raised with a code of their own.
    others = {code for _, code, _ in listed} - {code for _, code, _ in own}
    assert others == {*codes_given()} - {code for _, code, _ in own}


def error_rows() -> list[tuple[str, ...]]:
    """The cells of the table in docs/errors.md, without its ``code`` quotes."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| \d.*$", text, re.M)
    return [tuple(c.strip().replace("`", "") for c in line.split("|")[1:-1]) for line in lines]


def codes_given() -> Iterator[str]:
    """The strings that the package gives as the ``code`` of an error."""
    # Django's forms and fields have codes as well, that no caller of the API sees.
    for file in set(PACKAGE.rglob("*.py")) - set((PACKAGE / "integrations").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                value = node.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value
    yield from ("concurrency_limit_exceeded", "request_exceeds_limit")  # of a limiter's wording


# Waiting cannot help: these carry `x-should-retry: false`.
FINAL = {"request_exceeds_limit", "provider_unavailable"}


@pytest.mark.parametrize("row", error_rows(), ids=lambda row: row[1])
def test_the_sdk_does_with_an_error_what_the_table_says(
    row: tuple[str, ...], provider: Any
) -> None:
    status, code, kind, _, sdk, _ = row
    if sdk == "nobody reads it":
        return
    envelope = {"error": {"message": "No.", "type": kind, "param": None, "code": code}}
    steering = {"Retry-After": "0.001", **({"x-should-retry": "false"} if code in FINAL else {})}
    provider.respond = lambda turn: turn.answer(envelope, int(status), steering)
    with (
        openai.OpenAI(api_key="sk-test", base_url=provider.url, max_retries=2) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.models.list()
    repeated = ", after two repeats" if len(provider.turns) == 3 else ""
    assert sdk == f"{type(caught.value).__name__}{repeated}"
    assert caught.value.code == code


# --- links ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "http://")):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_readme() -> None:
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in README_TEXT] == []


LANGUAGES = {"python", "toml", "console", "text", "sh", "nginx", "apache", "ini", "json", "http"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    """So that none is passed over because its language is unknown."""
    text = page.read_text(encoding="utf-8")
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert text.count("```") == 2 * len(blocks(page))
