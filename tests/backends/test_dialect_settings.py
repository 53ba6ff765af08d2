"""The `dialect` option of a provider's row: a name, or a table of fields."""

import dataclasses
import tomllib

import pytest

from oneai_middleware import ConfigurationError
from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.backends.openai.dialects.base import Dialect
from oneai_middleware.backends.openai.dialects.settings import read_dialect
from oneai_middleware.backends.openai.dialects.shipped import SHIPPED
from oneai_middleware.catalog import presets


def refusal(value):
    with pytest.raises(ConfigurationError) as caught:
        read_dialect(value)
    return str(caught.value)


def test_every_shipped_provider_has_a_dialect_and_every_dialect_but_one_a_provider():
    assert {preset.dialect for preset in presets().values()} == set(SHIPPED) - {"generic"}
    assert all(name == dialect.name for name, dialect in SHIPPED.items())


def test_a_dialect_is_chosen_by_its_name():
    assert read_dialect("zhipu") is not None
    assert read_dialect("zhipu") == read_dialect({"name": "zhipu"}) == SHIPPED["zhipu"]
    assert read_dialect({}) == SHIPPED["generic"]


@pytest.mark.parametrize("name", SHIPPED)
def test_whatever_is_shipped_could_be_said_in_the_settings(name):
    shipped = SHIPPED[name]
    fields = {
        field.name: getattr(shipped, field.name)
        for field in dataclasses.fields(Dialect)
        if field.name != "name"
    }
    assert dataclasses.replace(read_dialect(fields), name=name) == shipped


def test_a_dialect_cannot_be_changed_behind_our_backs():
    fields = {"drop": ["seed"], "values": {"a": [1]}, "roles": {"developer": "user"}}
    dialect = read_dialect(fields)
    fields["drop"].append("n")
    fields["values"]["a"].append(2)
    fields["roles"]["developer"] = "x"
    assert (dialect.drop, dialect.values) == (("seed",), {"a": (1,)})
    assert dialect.roles == {"developer": "user"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        dialect.drop = ()


def test_every_field_can_be_said_in_toml():
    text = """
        name = "zhipu"
        drop = ["seed", "messages[].name"]
        drop_for = { "o3*" = ["temperature"] }
        values = { tool_choice = ["auto"] }
        ranges = { temperature = [0, 1.5] }
        sizes = { user = [1, 64] }
        stops = 4
        greedy = { do_sample = false }
        rename = { user = "user_id", "messages[].reasoning_content" = "reasoning" }
        length = ""
        roles = { developer = "system" }
        thinking = { on = { think = true }, off = { think = false } }
        defaults = { reasoning_split = true }
        stream_usage = false
        obfuscation = true
        folds = true
        reasoning = "thought"
        causes = { 1113 = "overloaded", "Some.Code" = "invalid" }
    """
    table = tomllib.loads(text)
    assert set(table) == {field.name for field in dataclasses.fields(Dialect)}
    assert read_dialect(table) == Dialect(
        name="zhipu",
        drop=("seed", "messages[].name"),
        drop_for={"o3*": ("temperature",)},
        values={"tool_choice": ("auto",)},
        ranges={"temperature": (0, 1.5)},
        sizes={"user": (1, 64)},
        stops=4,
        greedy={"do_sample": False},
        rename={"user": "user_id", "messages[].reasoning_content": "reasoning"},
        length="",
        roles={"developer": "system"},
        thinking={"on": {"think": True}, "off": {"think": False}},
        defaults={"reasoning_split": True},
        stream_usage=False,
        obfuscation=True,
        folds=True,
        reasoning="thought",
        causes={"1113": "overloaded", "Some.Code": "invalid"},
    )


EMPTY = {"thinking": {}, "drop": [], "values": {}, "greedy": {}, "length": "", "stops": 0}


def test_every_difference_can_be_taken_back():
    dialect = read_dialect({"name": "zhipu", **EMPTY})
    assert (dialect.thinking, dialect.drop, dialect.values) == ({}, (), {})
    assert dialect.ranges == SHIPPED["zhipu"].ranges


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("zhipo", "dialect: unknown name 'zhipo'; did you mean 'zhipu'?"),
        ({"name": "zhipo"}, "dialect: unknown name 'zhipo'; did you mean 'zhipu'?"),
        ({"name": ["zhipu"]}, "dialect: unknown name \"['zhipu']\"; did you mean 'zhipu'?"),
        ({"dropp": []}, "dialect: unknown field 'dropp'; did you mean 'drop'?"),
        ({5: []}, "dialect: unknown field '5'; known: "),
        (None, "dialect: the name of one, such as 'deepseek', or a table of fields to change"),
        (["zhipu"], "dialect: the name of one, "),
        ({"drop": "seed"}, "dialect: drop is a list of paths, such as ['seed', "),
        ({"drop": [5]}, "dialect: drop is a list of paths"),
        ({"drop": [""]}, "dialect: drop is a list of paths"),
        ({"drop": ["a b"]}, "dialect: drop is a list of paths"),
        ({"drop": ["a..b"]}, "dialect: drop is a list of paths"),
        ({"drop": ["messages[]"]}, "dialect: drop is a list of paths"),
        ({"drop": ["tools[].function.enum[]"]}, "dialect: drop is a list of paths"),
        ({"drop": ["tools[][].x"]}, "dialect: drop is a list of paths"),
        ({"rename": {"stop[]": "stops"}}, "dialect: rename is a table of paths to names"),
        ({"drop": ["messages"]}, "dialect: drop is a list of paths"),
        ({"drop": ["model"]}, "dialect: drop is a list of paths"),
        ({"drop_for": {"o3*": "temperature"}}, "dialect: drop_for is a table of patterns"),
        ({"values": {"tool_choice": "auto"}}, "dialect: values is a table of fields to lists"),
        ({"ranges": {"temperature": [1]}}, "dialect: ranges is a table of fields to two numbers"),
        ({"ranges": {"temperature": [1, 0]}}, "dialect: ranges is a table"),
        ({"ranges": {"temperature": [float("nan"), 1]}}, "dialect: ranges is a table"),
        ({"ranges": {"temperature": [False, True]}}, "dialect: ranges is a table"),
        ({"sizes": {"user": [-1, 1]}}, "dialect: sizes is a table"),
        ({"sizes": {"user": [1.5, 2]}}, "dialect: sizes is a table"),
        ({"stops": -1}, "dialect: stops is a number of stop strings, 0 for any"),
        ({"stops": True}, "dialect: stops is a number"),
        ({"greedy": {"stream": False}}, "dialect: greedy is a table of fields"),
        ({"greedy": ["do_sample"]}, "dialect: greedy is a table of fields"),
        ({"rename": {"user": "model"}}, "dialect: rename is a table of paths to names"),
        ({"length": "max"}, "dialect: length is 'max_tokens', 'max_completion_tokens', or ''"),
        ({"length": None}, "dialect: length is "),
        ({"roles": {"developer": 1}}, "dialect: roles is a table of roles"),
        ({"thinking": {"on": {}}}, "dialect: thinking is a table of what to send for 'on'"),
        ({"thinking": {"on": {}, "of": {}}}, "dialect: thinking is a table"),
        ({"thinking": {"on": {"x": 1}, "off": "x"}}, "dialect: thinking is a table"),
        ({"defaults": {"model": "x"}}, "dialect: defaults is a table of fields"),
        ({"defaults": {"x": object()}}, "dialect: defaults is a table of fields"),
        ({"stream_usage": "yes"}, "dialect: stream_usage is True or False"),
        ({"obfuscation": 1}, "dialect: obfuscation is True or False"),
        ({"folds": None}, "dialect: folds is True or False"),
        ({"reasoning": True}, "dialect: reasoning is the name of a field"),
        ({"causes": {"1": "busy"}}, "dialect: causes is a table of signs to causes, which are"),
        ({"causes": {1.5: "invalid"}}, "dialect: causes is a table"),
        ({"causes": {"1": ["invalid"]}}, "dialect: causes is a table"),
    ],
)
def test_a_mistake_is_told_with_its_fix(value, message):
    assert refusal(value).startswith(message)


@pytest.mark.parametrize("paid", ["n", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    "field",
    [
        lambda name: {"defaults": {name: 5}},
        lambda name: {"greedy": {name: 5}},
        lambda name: {"rename": {"seed": name}},
        lambda name: {"ranges": {name: [1, 2]}},
        lambda name: {"values": {name: [1]}},
        lambda name: {"thinking": {"on": {name: 5}, "off": {}}},
        lambda name: {"thinking": {"on": {}, "off": {name: 5}}},
    ],
)
def test_what_the_callers_money_was_held_for_is_nobody_elses_to_say(field, paid):
    (name,) = field(paid)
    assert refusal(field(paid)).startswith(f"dialect: {name} is a table")


@pytest.mark.parametrize("paid", ["max_tokens", "max_completion_tokens"])
def test_the_bound_on_the_output_is_always_sent(paid):
    assert refusal({"drop": [paid]}).startswith("dialect: drop is a list of paths")
    assert refusal({"drop_for": {"*": [paid]}}).startswith("dialect: drop_for is a table")


def test_a_mistake_stops_the_start_and_names_the_provider(make_gateway):
    with pytest.raises(ConfigurationError) as caught:
        make_gateway(providers={"zhipu": {"api_key": "sk-1", "dialect": {"lenght": ""}}})
    assert str(caught.value) == (
        "providers['zhipu']: dialect: unknown field 'lenght'; did you mean 'length'?"
    )
    with pytest.raises(ConfigurationError, match="dialect: unknown name 'zhipo'"):
        OpenAIBackend(base_url="http://127.0.0.1:1/v1", dialect="zhipo")


# --- in a provider's row ------------------------------------------------------------


def test_a_provider_of_ones_own_has_the_dialect_it_names(ask_as):
    ask_as("mine", temperature=2, max_completion_tokens=5)
    assert ask_as.sent == {"temperature": 2, "max_completion_tokens": 5}
    ask_as("mine", dialect="zhipu", temperature=2, max_completion_tokens=5)
    assert ask_as.sent == {"temperature": 1, "max_tokens": 5}


def test_a_shipped_provider_has_its_own_dialect_and_what_is_changed_of_it(ask_as):
    ask_as("zhipu", temperature=2, seed=1, presence_penalty=1)
    assert ask_as.sent == {"temperature": 1, "seed": 1}
    ask_as("zhipu", dialect={"drop": ["seed"]}, temperature=2, seed=1, presence_penalty=1)
    assert ask_as.sent == {"temperature": 1, "presence_penalty": 1}


def test_a_shipped_provider_can_be_given_another_dialect(ask_as):
    ask_as("zhipu", dialect="generic", temperature=2)
    assert ask_as.sent == {"temperature": 2}
    ask_as("zhipu", dialect={"name": "alibaba", "length": ""}, max_tokens=5, temperature=2)
    assert ask_as.sent == {"temperature": 1.99, "max_tokens": 5}


def test_the_providers_row_is_left_as_it_was(make_gateway):
    row = {"api_key": "sk-1", "dialect": {"drop": ["seed"]}}
    make_gateway(providers={"zhipu": row})
    assert row == {"api_key": "sk-1", "dialect": {"drop": ["seed"]}}
