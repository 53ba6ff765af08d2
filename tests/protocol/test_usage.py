"""Every provider's usage, read as one thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.protocol.usage import Usage

PLAIN = {"prompt_tokens": 10, "completion_tokens": 5}


@pytest.mark.parametrize(
    ("provider", "raw", "cached", "reasoning"),
    [
        ("OpenAI", {"prompt_tokens_details": {"cached_tokens": 4}}, 4, 0),
        ("DeepSeek", {"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6}, 4, 0),
        ("Moonshot", {"cached_tokens": 4}, 4, 0),
        ("Qwen", {"completion_tokens_details": {"reasoning_tokens": 3}}, 0, 3),
        ("vLLM", {"prompt_tokens_details": None, "completion_tokens_details": None}, 0, 0),
        ("Ollama", {}, 0, 0),
        ("nonsense", {"prompt_tokens_details": 7, "cached_tokens": "4"}, 0, 0),
    ],
)
def test_the_subsets_are_found_where_each_provider_puts_them(provider, raw, cached, reasoning):
    usage = Usage.read({**PLAIN, **raw})
    assert (usage.cached_tokens, usage.reasoning_tokens) == (cached, reasoning)


def test_subsets_are_never_added_on_top_nor_larger_than_their_whole():
    """Conformance 102."""
    usage = Usage.read(
        {**PLAIN, "cached_tokens": 99, "completion_tokens_details": {"reasoning_tokens": 99}}
    )
    assert (usage.total_tokens, usage.cached_tokens, usage.reasoning_tokens) == (15, 10, 5)


@pytest.mark.parametrize(
    "raw",
    [
        None, {}, [], "usage", 7,
        {"total_tokens": 15},
        {"prompt_tokens": 10},
        {**PLAIN, "prompt_tokens": -1},
        {**PLAIN, "prompt_tokens": None},
        {**PLAIN, "prompt_tokens": 1.5},
        {**PLAIN, "completion_tokens": "5"},
        {**PLAIN, "completion_tokens": True},
        {**PLAIN, "completion_tokens": 10**9},
    ],
)  # fmt: skip
def test_figures_that_are_missing_or_absurd_are_no_usage(raw):
    assert Usage.read(raw) is None


def test_zero_is_a_figure():
    assert Usage.read({"prompt_tokens": 0, "completion_tokens": 0}) == Usage(0, 0)


def test_a_providers_own_fields_stand_beside_ours_and_never_over_them():
    """Conformance 51."""
    raw = {
        **PLAIN,
        "total_tokens": 99,
        "queue_time": 0.1,
        "cached_tokens": 4,
        "prompt_tokens_details": {"audio_tokens": 1},
    }
    assert Usage.read(raw).as_dict() == {
        **PLAIN,
        "total_tokens": 15,
        "queue_time": 0.1,
        "cached_tokens": 4,
        "prompt_tokens_details": {"audio_tokens": 1, "cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


COUNTS = st.integers(-2, 2 * 10**9) | st.none() | st.booleans() | st.text(max_size=2) | st.floats()
DETAILS = st.none() | COUNTS | st.dictionaries(
    st.sampled_from(["cached_tokens", "reasoning_tokens", "audio_tokens"]), COUNTS
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": COUNTS,
            "completion_tokens": COUNTS,
            "total_tokens": COUNTS,
            "cached_tokens": COUNTS,
            "prompt_cache_hit_tokens": COUNTS,
            "prompt_tokens_details": DETAILS,
            "completion_tokens_details": DETAILS,
        },
    )
)
def test_whatever_a_provider_says_the_figures_add_up_and_read_the_same_again(raw):
    """Conformance 51."""
    usage = Usage.read(raw)
    if usage is None:
        return
    shown = usage.as_dict()
    assert shown["total_tokens"] == shown["prompt_tokens"] + shown["completion_tokens"]
    assert 0 <= usage.cached_tokens <= usage.prompt_tokens
    assert 0 <= usage.reasoning_tokens <= usage.completion_tokens
    assert all(type(shown[name]) is int for name in (*PLAIN, "total_tokens"))
    assert Usage.read(shown) == usage
