import dataclasses
import decimal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.accounts import Account, ApiKey, Caller
from oneai_middleware.catalog import (
    CREATED,
    Catalog,
    Price,
    Route,
    load_catalog,
    parse_shipped,
    presets,
    read_shipped,
)
from oneai_middleware.errors import ConfigurationError, ModelNotFound
from oneai_middleware.protocol.usage import Usage

PROVIDERS = ("deepseek", "alibaba", "moonshot", "minimax", "zhipu")
ANYONE = Caller(Account("alice"))
NEW = {"routes": ["deepseek/x"], "input": "1", "output": "2"}

# The price list of the API reference: id, owner, context, nano-dollars per token.
PRINTED = [
    ("deepseek-v4-pro", "deepseek", 128_000, 1_000, 4_000),
    ("deepseek-v4-flash", "deepseek", 128_000, 300, 1_200),
    ("deepseek-r1", "deepseek", 128_000, 800, 3_500),
    ("deepseek-v3", "deepseek", 128_000, 500, 2_190),
    ("qwen-coder", "alibaba", 128_000, 400, 1_600),
    ("qwen-max", "alibaba", 32_000, 600, 2_400),
    ("kimi", "moonshot", 128_000, 400, 1_600),
    ("minimax-m1", "minimax", 1_000_000, 350, 1_400),
    ("glm-4", "zhipu", 128_000, 300, 1_200),
]


@pytest.fixture
def catalog():
    return load_catalog({}, PROVIDERS)


def refusal(table, providers=PROVIDERS):
    with pytest.raises(ConfigurationError) as caught:
        load_catalog(table, providers)
    return str(caught.value)


# --- what is shipped --------------------------------------------------------


def test_the_nine_models_are_listed_in_the_printed_order(catalog):
    """Conformance 23."""
    listed = [model.as_dict()["id"] for model in catalog.listed(ANYONE)]
    assert listed == [id for id, *_ in PRINTED]


def test_a_listed_model_is_an_openai_model_object(catalog):
    """Conformance 24."""
    for model in catalog.listed(ANYONE):
        fields = model.as_dict()
        assert fields["object"] == "model"
        assert type(fields["created"]) is int
        assert fields["owned_by"]


@pytest.mark.parametrize(("id", "owner", "context", "input", "output"), PRINTED)
def test_prices_contexts_and_owners_are_as_printed(catalog, id, owner, context, input, output):
    """Conformance 25."""
    model = catalog[id]
    assert (model.owned_by, model.context) == (owner, context)
    assert model.price == Price(input, output, None)


def test_deepseek_r1_has_the_price_of_its_first_printed_row(catalog):
    """Conformance 25."""
    assert catalog["deepseek-r1"].as_dict()["pricing"] == {"input": "0.80", "output": "3.50"}


def test_every_shipped_model_has_its_route(catalog):
    assert {id: [str(route) for route in model.routes] for id, model in catalog.items()} == {
        "deepseek-v4-pro": ["deepseek/deepseek-v4-pro"],
        "deepseek-v4-flash": ["deepseek/deepseek-v4-flash"],
        "deepseek-r1": ["deepseek/deepseek-v4-flash"],
        "deepseek-v3": ["deepseek/deepseek-v4-flash"],
        "qwen-coder": ["alibaba/qwen3-coder-flash"],
        "qwen-max": ["alibaba/qwen3.8-max"],
        "kimi": ["moonshot/kimi-k2.6"],
        "minimax-m1": ["minimax/MiniMax-M3"],
        "glm-4": ["zhipu/glm-5.3-flash"],
    }


def test_r1_thinks_by_default_and_v3_does_not(catalog):
    thinking = {id: model.defaults["thinking"] for id, model in catalog.items() if model.defaults}
    assert thinking == {"deepseek-r1": {"type": "enabled"}, "deepseek-v3": {"type": "disabled"}}


def test_a_model_object_says_its_context_and_price(catalog):
    fields = catalog["minimax-m1"].as_dict()
    assert fields["context_length"] == 1_000_000
    assert fields["pricing"] == {"input": "0.35", "output": "1.40"}
    assert "max_output_tokens" not in fields


def test_every_shipped_route_leads_to_a_preset():
    models = load_catalog({}, PROVIDERS).values()
    assert {model.routes[0].provider for model in models} <= set(presets())


def test_presets_are_the_international_hosts_and_the_usual_ports_of_local_servers():
    assert {
        preset.name: (preset.base_url, preset.key_variable) for preset in presets().values()
    } == {
        "deepseek": ("https://api.deepseek.com", "DEEPSEEK_API_KEY"),
        "alibaba": (
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            "DASHSCOPE_API_KEY",
        ),
        "moonshot": ("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
        "minimax": ("https://api.minimax.io/v1", "MINIMAX_API_KEY"),
        "zhipu": ("https://api.z.ai/api/paas/v4", "ZAI_API_KEY"),
        "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        "vllm": ("http://localhost:8000/v1", None),
        "llamacpp": ("http://localhost:8080/v1", None),
        "ollama": ("http://localhost:11434/v1", None),
    }


def test_the_shipped_data_is_read_once():
    assert read_shipped() is read_shipped()


def test_the_import_alone_reads_no_data():
    program = (
        "import oneai_middleware.catalog as catalog;"
        "assert catalog.read_shipped.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_two_rows_of_one_id_are_refused_and_both_named():
    row = '[[models]]\nid = "m"\ninput = "{}"\noutput = "2.19"\nroutes = ["p/m"]\n'
    with pytest.raises(ConfigurationError) as caught:
        parse_shipped(row.format("0.80") + row.format("0.55") + "[providers]\n")
    assert "rows 1 (input 0.80, output 2.19) and 2 (input 0.55, output 2.19)" in str(caught.value)


# --- prices -----------------------------------------------------------------


def test_a_price_per_million_is_a_whole_number_of_nano_dollars_per_token():
    assert Price.parse("2.19", "0.435", "0.028", where="here") == Price(2_190, 435, 28)
    assert Price.parse(1, decimal.Decimal("0"), where="here") == Price(1_000, 0)


@pytest.mark.parametrize(
    "value", [0.5, True, None, "", "free", "-1", "0.0005", "NaN", "Infinity", "1000001", ["1"]]
)
@pytest.mark.parametrize("field", ["input", "output"])
def test_a_price_that_is_none_is_refused_naming_the_field(field, value):
    message = refusal({"kimi": {field: value}})
    assert f"models['kimi']: {field}" in message


def test_a_float_is_refused_with_the_way_to_write_it():
    assert "write dollars as a string" in refusal({"kimi": {"input": 0.4}})


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.none() | st.integers(0, 10**9),
)
def test_a_price_survives_being_shown_and_read_again(input, output, cached):
    price = Price(input, output, cached)
    assert Price.parse(**price.as_dict(), where="here") == price


@pytest.mark.parametrize(
    ("nano", "shown"), [(0, "0.00"), (5, "0.005"), (500, "0.50"), (2_190, "2.19"), (435, "0.435")]
)
def test_dollars_are_shown_with_two_decimals_or_three(nano, shown):
    assert Price(nano, 0).as_dict()["input"] == shown


def test_the_cost_is_prompt_times_input_and_completion_times_output():
    """Conformance 101."""
    assert Price(1_000, 4_000).cost(Usage(7, 3)) == 7 * 1_000 + 3 * 4_000


def test_a_million_calls_cost_exactly_a_million_times_one():
    """Conformance 101."""
    price = Price.parse("0.35", "2.19", where="here")
    one = price.cost(Usage(1, 1))
    assert type(one) is int
    assert price.cost(Usage(10**6, 10**6)) == 10**6 * one == 2_540_000_000


def test_cached_and_reasoning_tokens_are_not_added_on_top():
    """Conformance 102."""
    price = Price(1_000, 4_000)
    assert price.cost(Usage(7, 3, cached_tokens=5, reasoning_tokens=2)) == price.cost(Usage(7, 3))


def test_cached_tokens_have_their_own_price_where_there_is_one():
    usage = Usage(10, 0, cached_tokens=4)
    assert Price(1_000, 0, 100).cost(usage) == 6 * 1_000 + 4 * 100
    assert Price(1_000, 0, 0).cost(usage) == 6 * 1_000
    assert Price(1_000, 0, 100).cached == 100
    assert Price(1_000, 0).cached == 1_000


# --- finding and listing ----------------------------------------------------


def test_a_model_is_found_by_its_id(catalog):
    assert catalog.find("kimi", ANYONE) is catalog["kimi"]


def test_an_unknown_model_is_not_found(catalog):
    with pytest.raises(ModelNotFound, match="'gpt-9'") as caught:
        catalog.find("gpt-9", ANYONE)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "caller",
    [
        Caller(Account("alice", models=frozenset({"glm-4"}))),
        Caller(Account("alice"), ApiKey("k", Account("alice"), models=frozenset({"glm-4"}))),
    ],
)
def test_a_model_the_caller_may_not_use_looks_unknown(catalog, caller):
    assert [model.id for model in catalog.listed(caller)] == ["glm-4"]
    with pytest.raises(ModelNotFound) as forbidden:
        catalog.find("kimi", caller)
    with pytest.raises(ModelNotFound) as unknown:
        Catalog([]).find("kimi", ANYONE)
    assert forbidden.value.envelope() == unknown.value.envelope()


def test_a_strange_id_is_shown_short_and_printable(catalog):
    with pytest.raises(ModelNotFound) as caught:
        catalog.find("a\r\nb\ud800" + "x" * 10_000, ANYONE)
    assert "'a??b?xxx" in caught.value.message
    assert "…'" in caught.value.message
    assert len(caught.value.message) < 140
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("id", ["org/name", "a:b", "with space", "ünï/中文"])
def test_an_id_may_hold_slashes_colons_and_spaces(id):
    assert load_catalog({id: NEW}, PROVIDERS).find(id, ANYONE).id == id


# --- the setting ------------------------------------------------------------


def test_a_shipped_model_without_a_configured_provider_is_left_out():
    assert list(load_catalog({}, ["moonshot", "zhipu"])) == ["kimi", "glm-4"]
    assert list(load_catalog({}, [])) == []


def test_the_setting_is_merged_field_by_field():
    shipped = load_catalog({}, PROVIDERS)["deepseek-r1"]
    changed = load_catalog({"deepseek-r1": {"input": "0.55"}}, PROVIDERS)["deepseek-r1"]
    assert changed == dataclasses.replace(shipped, price=Price(550, 3_500))


def test_a_changed_model_keeps_its_place_and_new_ones_follow():
    catalog = load_catalog({"new": NEW, "kimi": {"input": "9"}}, PROVIDERS)
    assert list(catalog) == [*(id for id, *_ in PRINTED), "new"]


def test_false_removes_a_shipped_model():
    assert "kimi" not in load_catalog({"kimi": False}, PROVIDERS)


def test_false_removes_a_model_whose_provider_is_not_configured_too():
    assert list(load_catalog({"kimi": False}, ["zhipu"])) == ["glm-4"]


def test_a_new_model_has_defaults_for_what_nobody_said():
    model = load_catalog({"new": NEW}, PROVIDERS)["new"]
    assert (model.owned_by, model.created) == ("deepseek", CREATED)
    assert (model.context, model.max_output, dict(model.defaults)) == (None, None, {})
    assert "context_length" not in model.as_dict()


def test_every_field_of_a_model_can_be_set():
    row = {
        "routes": ["zhipu/a/b", "alibaba/c"],
        "input": "1",
        "output": "2",
        "cached_input": "0.1",
        "context": 1_000,
        "max_output": 100,
        "owned_by": "us",
        "created": 1,
        "defaults": {"top_p": 0.5},
    }
    model = load_catalog({"new": row}, PROVIDERS)["new"]
    assert model.routes == (Route("zhipu", "a/b"), Route("alibaba", "c", rank=1))
    assert model.defaults == {"top_p": 0.5}
    assert model.as_dict() == {
        "id": "new",
        "object": "model",
        "created": 1,
        "owned_by": "us",
        "context_length": 1_000,
        "max_output_tokens": 100,
        "pricing": {"input": "1.00", "output": "2.00", "cached_input": "0.10"},
    }


def test_a_route_is_split_at_its_first_slash():
    assert Route.parse("hub/org/name", where="here") == Route("hub", "org/name")


@pytest.mark.parametrize("route", ["", "kimi", "/kimi", "moonshot/", 7, None])
def test_a_malformed_route_is_refused_with_an_example(route):
    message = refusal({"kimi": {"routes": [route]}})
    assert "models['kimi']: routes" in message
    assert "'provider/upstream-id'" in message


def test_routes_stand_in_ranks_and_those_of_one_rank_share_the_calls_by_weight():
    routes = ["deepseek/x", {"alibaba/y": 3, "zhipu/a/b": 1}, "kimi-host/z"]
    catalog = load_catalog({"new": {**NEW, "routes": routes}}, [*PROVIDERS, "kimi-host"])
    assert catalog["new"].routes == (
        Route("deepseek", "x", rank=0, weight=1),
        Route("alibaba", "y", rank=1, weight=3),
        Route("zhipu", "a/b", rank=1, weight=1),
        Route("kimi-host", "z", rank=2, weight=1),
    )
    assert catalog["new"].owned_by == "deepseek"


@pytest.mark.parametrize("weight", [0, -1, True, False, 1.5, "3", None, 10**6, [1]])
def test_a_weight_that_is_no_whole_number_above_0_is_refused(weight):
    routes = [{"moonshot/a": 1, "zhipu/b": weight}]
    message = refusal({"kimi": {"routes": routes}})
    assert message.startswith("models['kimi']: routes: the weight of 'zhipu/b' is a whole number")
    assert repr(weight) in message


def test_an_empty_table_of_routes_is_refused():
    message = refusal({"kimi": {"routes": ["moonshot/a", {}]}})
    assert message == "models['kimi']: routes: a table of routes to weights, not an empty one"


@pytest.mark.parametrize("route", ["", "kimi", "/kimi", "moonshot/", 7])
def test_a_malformed_route_in_a_table_is_refused_with_an_example(route):
    message = refusal({"kimi": {"routes": [{"moonshot/a": 1, route: 1}]}})
    assert message.startswith("models['kimi']: routes: ")
    assert "'provider/upstream-id'" in message


def test_a_route_to_nowhere_in_a_table_is_refused_with_a_guess():
    message = refusal({"kimi": {"routes": [{"moonshot/a": 2, "zipu/b": 1}]}})
    assert message.startswith("models['kimi']: no way along the route 'zipu/b'")
    assert "did you mean 'zhipu'?" in message


@pytest.mark.parametrize("routes", [[], "moonshot/kimi-k2.6", None, {}, {"moonshot/a": 1}])
def test_routes_that_are_no_list_are_refused(routes):
    assert "models['kimi']: routes is a list" in refusal({"kimi": {"routes": routes}})


def test_a_named_model_without_a_configured_route_is_refused():
    message = refusal({"kimi": {"input": "1"}}, ["zhipu"])
    assert "models['kimi']" in message
    assert "'moonshot/kimi-k2.6'" in message
    assert "known: zhipu" in message


def test_one_route_to_nowhere_among_others_is_refused_with_a_guess():
    message = refusal({"new": {**NEW, "routes": ["deepseek/x", "deepsek/x"]}})
    assert "did you mean 'deepseek'?" in message


def test_an_unknown_field_is_refused_with_a_guess():
    message = refusal({"kimi": {"contxt": 1}})
    assert "models['kimi']: unknown field 'contxt'; did you mean 'context'?" in message


def test_removing_an_unknown_model_is_refused_with_a_guess():
    assert "did you mean 'kimi'?" in refusal({"kimy": False})


@pytest.mark.parametrize("row", [None, True, "kimi", []])
def test_a_row_that_is_no_table_is_refused(row):
    assert "models['kimi']: a table of fields, or False" in refusal({"kimi": row})


@pytest.mark.parametrize("id", ["", "a\nb", 7])
def test_an_unprintable_id_is_refused(id):
    assert f"models[{id!r}]: an id is" in refusal({id: NEW})


@pytest.mark.parametrize("price", ["input", "output"])
def test_a_new_model_without_a_price_is_refused(price):
    row = {name: value for name, value in NEW.items() if name != price}
    assert f"models['new']: {price} is missing" in refusal({"new": row})


@pytest.mark.parametrize("field", ["context", "max_output", "created"])
@pytest.mark.parametrize("value", ["128K", 1.5, 0, -1, True, 2**53])
def test_a_count_that_is_no_whole_number_is_refused(field, value):
    assert f"models['kimi']: {field} is a whole number" in refusal({"kimi": {field: value}})


@pytest.mark.parametrize(
    "defaults", [None, [], {"model": "x"}, {"stream": True}, {1: 2}, {"stop": object()}]
)
def test_defaults_that_cannot_be_sent_are_refused(defaults):
    assert "models['kimi']: defaults" in refusal({"kimi": {"defaults": defaults}})


@pytest.mark.parametrize("owner", ["", 7])
def test_an_owner_without_a_name_is_refused(owner):
    assert "models['kimi']: owned_by" in refusal({"kimi": {"owned_by": owner}})
