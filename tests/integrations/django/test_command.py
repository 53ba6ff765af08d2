import io
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command


def run(*arguments):
    """What ``manage.py oneai …`` writes, called from Python."""
    output = io.StringIO()
    call_command("oneai", *arguments, stdout=output)
    return output.getvalue()


def test_a_key_is_made(use):
    use()
    assert run("secret").startswith("secret  oneai-sk-")


def test_the_projects_models_are_listed(use):
    use()
    assert [line.split()[0] for line in run("models").splitlines()][-1] == "notes"


def test_the_parts_that_the_project_chose_are_marked(use):
    use()
    assert "in use" in next(line for line in run("plugins").splitlines() if " echo " in line)


def test_the_project_is_checked(use, capsys):
    use()
    assert "provider echo: reached" in run("check")
    assert capsys.readouterr() == ("", "")


def test_what_is_refused_is_a_command_error(use):
    use(MUONT="/ai")
    said = io.StringIO()
    with pytest.raises(CommandError, match="1") as refused:
        call_command("oneai", "check", stdout=io.StringIO(), stderr=said)
    assert refused.value.returncode == 1
    assert "did you mean 'MOUNT'" in said.getvalue()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["secret"], 0, "oneai-sk-"),
        (["models"], 0, "pausing"),
        (["plugins"], 0, "oneai_middleware 0"),
        (["check"], 0, "provider echo: reached"),
        (["models", "--settings=project.settings"], 0, "pausing"),
        (["--pythonpath", ".", "models"], 0, "pausing"),
        (["--help"], 0, "usage: manage.py oneai"),
        (["chekc"], 2, "usage: manage.py oneai"),
    ],
)
def test_manage_py_runs_it(manage, project_environment, arguments, status, word):
    done = manage(project_environment(), "oneai", *arguments)
    assert done.returncode == status
    assert word in done.stdout


@pytest.mark.parametrize("command", ["check", "runserver"])
def test_a_mistake_in_the_settings_stops_manage_py(manage, project_environment, command):
    done = manage(project_environment(MUONT="/ai"), command, *["--noreload"][command == "check" :])
    assert done.returncode == 1
    assert "oneai.E001" in done.stdout
    assert "did you mean 'MOUNT'" in done.stdout


@pytest.mark.usefixtures("empty")
def test_from_nothing_to_a_funded_key_and_back(use, capsys):
    use(KEY_STORE="django", ACCOUNTS={})
    assert run("db", "upgrade").count("by `manage.py migrate`") == 2
    made = run(
        "keys", "create", "alice", "--tier", "pro", "--label", "ci", "--expires", "2100-01-01"
    )
    assert "account  alice (tier pro)" in made
    assert "available  25.00" in run("top-up", "alice", "25", "--reference", "r1")
    assert "was booked before" in run("top-up", "alice", "25", "--reference", "r1")
    key = made.split()[made.split().index("id") + 1]
    assert key in run("keys", "rotate", key, "--overlap", "1h") + run("keys", "list", "alice")
    run("keys", "revoke", key)
    assert f"{key}  alice" in run("keys", "list")
    assert "revoked" in run("keys", "list")
    assert "25.00" in run("accounts", "list")
    assert "ok" in run("audit")
    assert "settled  0 lost calls" in run("sweep")
    assert "DAY" in run("usage", "alice")
    assert capsys.readouterr() == ("", "")


def test_tables_that_are_missing_are_named(manage, project_environment, tmp_path):
    environment = project_environment(included=True)
    environment["PROJECT_DATABASE"] = str(tmp_path / "empty.sqlite3")
    done = manage(environment, "oneai", "keys", "list")
    assert done.returncode == 1
    assert "Run `manage.py migrate`" in done.stdout
    assert manage(environment, "migrate", "--run-syncdb").returncode == 0
    assert manage(environment, "oneai", "keys", "list").returncode == 0


def test_the_models_are_as_the_migrations_make_them(manage, project_environment):
    done = manage(project_environment(), "makemigrations", "--check", "--dry-run", "oneai")
    assert (done.returncode, "No changes" in done.stdout) == (0, True)


@pytest.fixture
def manage(warm):
    """What a command of ``manage.py`` does, and says."""
    here = Path(__file__).parent
    return lambda environment, *arguments: warm.run(
        ["manage.py", *arguments], cwd=here, env=environment, merged=True
    )
