"""`oneai models`: what is offered, at what price, by whom."""

from __future__ import annotations

from typing import Any

import pytest

from oneai_middleware.cli import main

SETTINGS = """
    [providers.zhipu]
    backend = "echo"
    [providers.spare]
    backend = "echo"
    [models.house]
    routes = ["spare/one", "zhipu/glm-x"]
    input = "0.05"
    output = "12"
"""


def test_every_model_is_a_row_with_its_prices_and_its_routes_in_order(
    capsys: Any, config: Any
) -> None:
    assert main(["models", "--config", config(SETTINGS)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["model", "input", "output", "context", "routes"]
    cells = [row.split(maxsplit=4) for row in rows]
    assert ["house", "0.05", "12.00", "-", "spare/one, zhipu/glm-x"] in cells
    glm = next(row for row in cells if row[0] == "glm-4")
    assert glm[1:4] == ["0.30", "1.20", "128000"]
    # A column begins where its heading does.
    assert {row.index(row.split(maxsplit=4)[4]) for row in rows} == {heading.index("routes")}


def test_models_whose_provider_is_not_configured_are_not_offered(capsys: Any, config: Any) -> None:
    main(["models", "--config", config(SETTINGS)])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_no_models_are_a_heading_alone(capsys: Any, config: Any) -> None:
    assert main(["models", "--config", config("")]) == 0
    assert capsys.readouterr().out == "model  input  output  context  routes\n"


def test_models_reads_the_file_that_the_environment_names(
    capsys: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEAI_CONFIG", config(SETTINGS))
    assert main(["models"]) == 0
    assert "spare/one" in capsys.readouterr().out


def test_models_without_settings_says_how_to_give_them(capsys: Any) -> None:
    assert main(["models"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("oneai: no settings: give --config FILE")


def test_two_sources_at_once_are_misuse(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", "--config", "a.toml", "--app", "shop:app"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
