"""`oneai check` on what a stranger's hands can do: plug-ins, stores, missing values."""

from __future__ import annotations

from typing import Any

import pytest

from oneai_middleware.cli import main

DOWN = """
    from oneai_middleware.key_stores.base import KeyStore
    from oneai_middleware.ledgers.base import Ledger
    from oneai_middleware.rate_limiters.base import RateLimiter

    class Down:
        one_process = False

        @classmethod
        def from_settings(cls, settings, url=None):
            return cls()

        def refuse(self, *_, **__):
            raise ConnectionError("cannot reach db://alice:hunter2@host")

        find = account = acquire = status = hold = balance = refuse

    class Keys(Down, KeyStore): ...
    class Limits(Down, RateLimiter): ...
    class Money(Down, Ledger): ...
"""


@pytest.mark.parametrize(
    ("setting", "group", "kind"),
    [
        ("key_store", "key_stores", "Keys"),
        ("rate_limiter", "rate_limiters", "Limits"),
        ("ledger", "ledgers", "Money"),
    ],
)
def test_a_store_that_is_down_is_reported_and_the_others_are_still_asked(
    capsys: Any, config: Any, install: Any, setting: str, group: str, kind: str
) -> None:
    install("down", group, f"down = cli_down:{kind}", files={"cli_down.py": DOWN})
    settings = {"ledger": "memory", setting: "down://alice:hunter2@host"}
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    path = config("\n".join([*lines, "[providers.zhipu]", "backend = 'echo'"]))
    assert main(["check", "--config", path]) == 1
    output = capsys.readouterr()
    assert f"FAILED  {setting}: {kind}: ConnectionError\n" in output.out
    assert output.out.count("FAILED") == 1
    assert output.out.count("ok ") == 4
    assert "hunter2" not in output.out + output.err


@pytest.mark.parametrize(("is_up", "said"), [(True, "ok     "), (False, "FAILED ")])
def test_a_redis_is_asked(capsys: Any, config: Any, own_redis: Any, is_up: bool, said: str) -> None:
    if not is_up:
        own_redis.stop()
    url = own_redis.patient_url.replace("//", "//:hunter2@") if not is_up else own_redis.patient_url
    assert main(["check", "--config", config(f'rate_limiter = "{url}"')]) == (not is_up)
    output = capsys.readouterr()
    why = "" if is_up else ": store_unavailable: Redis: ConnectionError"
    assert f"{said} rate_limiter: RedisRateLimiter{why}\n" in output.out
    assert "N worker processes" not in output.out
    assert "hunter2" not in output.out + output.err


def test_limits_that_are_shared_out_are_no_reason_to_warn(capsys: Any, config: Any) -> None:
    assert main(["check", "--config", config("processes = 4")]) == 0
    assert "N worker processes" not in capsys.readouterr().out


def test_a_plugin_that_is_up_goes_by_its_own_name(capsys: Any, config: Any, install: Any) -> None:
    notes = """
        from oneai_middleware.key_stores.base import KeyStore

        class Notes(KeyStore):
            def find(self, digest):
                return None
    """
    install("up", "key_stores", "up = cli_up:Notes", files={"cli_up.py": notes})
    assert main(["check", "--config", config('key_store = "up"\nledger = "memory"')]) == 0
    assert "ok      key_store: Notes\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('mount = "/ai/v1"', "mount: '/ai/v1' ends in /v1, which the API adds by itself; write '/"),
        ('rate_limitter = "memory"', "unknown setting 'rate_limitter'; did you mean 'rate_limite"),
        ('ledger = "broken"', "ledger: 'cli_broken:Part' cannot be imported: ModuleNotFoundError"),
        ('[providers.x]\nbackend = "no_such.module:B"', "providers['x']['backend']: 'no_such.modu"),
        ('[providers.zhipu]\napi_key = "env:ONEAI_NOT_SET"', "providers['zhipu']['api_key']: the "),
        ('ledger = "gold"', "ledger: 'gold' is offered by several packages (first, second); "),
        ('ledger = "clumsy"', "ledger: making it raised ConnectionError; a part connects when it"),
        ('[accounts.a]\nkeys = ["oneai-sk-test"]', "`oneai secret`"),
    ],
)
def test_a_bad_input_is_one_clear_line(
    capsys: Any, config: Any, install: Any, text: str, said: str
) -> None:
    clumsy = """
        from oneai_middleware.ledgers.base import Ledger

        class Money(Ledger):
            def __init__(self):
                raise ConnectionError("hunter2")
    """
    install("broken", "ledgers", "broken = cli_broken:Part", files={"cli_broken.py": "import no_x"})
    install("first", "ledgers", "gold = first_gold:Gold")
    install("second", "ledgers", "gold = second_gold:Gold")
    install("clumsy", "ledgers", "clumsy = cli_clumsy:Money", files={"cli_clumsy.py": clumsy})
    assert main(["check", "--config", config(text)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("oneai: ")
    assert said in output.err
    assert output.err.count("\n") == 1
    assert "hunter2" not in output.err


def test_a_file_that_is_not_there_is_named(capsys: Any) -> None:
    assert main(["check", "--config", "no-such-file.toml"]) == 1
    assert capsys.readouterr().err.startswith("oneai: no-such-file.toml: cannot be read")
