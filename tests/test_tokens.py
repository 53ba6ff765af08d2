import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.tokens import TextCounter, estimate_prompt

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.lists(
    st.dictionaries(st.sampled_from(["type", "text", "refusal", "image_url", "file"]), JSON)
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "refusal", "file", "input_audio", "image_url"])},
        optional={"text": JSON, "refusal": JSON, "file": JSON},
    )
    | JSON,
    max_size=3,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": JSON, "content": PARTS | JSON, "name": JSON, "tool_calls": JSON}
    )
    | JSON,
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {}, optional={"messages": MESSAGES | JSON, "tools": JSON, "response_format": JSON}
)


def estimate_text(text):
    counter = TextCounter()
    counter.add(text)
    return counter.tokens


def prompt(*contents):
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def attached(kind, data):
    return prompt([{"type": kind, kind: {"data": data}}])


def test_no_text_is_no_token():
    assert estimate_text("") == 0


@pytest.mark.parametrize("text", ["a", " ", "\n", "é", "я", "中", "😀", "\ud800"])
def test_any_text_is_at_least_one_token(text):
    assert estimate_text(text) >= 1


def test_a_token_is_a_little_under_four_ascii_characters():
    assert estimate_text("x" * 3_750) == 1_000


def test_wide_characters_count_by_their_script():
    assert estimate_text("中" * 1_000) == 800
    assert estimate_text("한" * 1_000) == 800
    assert estimate_text("я" * 1_000) == 400
    assert estimate_text("😀" * 1_000) == 1_200


def test_ascii_between_wide_characters_counts_as_ascii():
    assert estimate_text("中" * 1_000 + "x" * 3_750) == 1_800


@given(st.lists(st.text()))
def test_the_cut_of_a_stream_does_not_change_its_count(pieces):
    counter = TextCounter()
    for piece in pieces:
        counter.add(piece)
    assert counter.tokens == estimate_text("".join(pieces))


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(text, more):
    assert estimate_text(text + more) >= estimate_text(text)


def test_an_empty_prompt_is_its_overhead():
    assert estimate_prompt({}) == 3
    assert estimate_prompt(prompt("", "")) == 3 + 2 * 4


def test_the_texts_of_all_messages_count():
    assert estimate_prompt(prompt("x" * 375, "x" * 375)) == 3 + 2 * 4 + 200


def test_text_parts_count_as_a_string_does():
    parts = [{"type": "text", "text": "x" * 375}, {"type": "text", "text": "x" * 375}]
    assert estimate_prompt(prompt(parts)) == estimate_prompt(prompt("x" * 750))


@pytest.mark.parametrize("name", ["name", "reasoning_content", "refusal"])
def test_the_other_texts_of_a_message_count(name):
    message = {"role": "assistant", "content": None, name: "x" * 375}
    assert estimate_prompt({"messages": [message]}) == 3 + 4 + 100


def test_tool_calls_count_with_their_arguments():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "x" * 3_750}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert 1_000 < estimate_prompt({"messages": [message]}) < 1_050


@pytest.mark.parametrize("name", ["tools", "functions", "response_format"])
def test_schemas_count_by_the_length_of_their_json(name):
    body = {**prompt("hi"), name: [{"description": "x" * 3_750}]}
    assert 1_000 < estimate_prompt(body) - estimate_prompt(prompt("hi")) < 1_020


def test_an_image_is_a_flat_thousand_however_large():
    data = base64.b64encode(bytes(300_000)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    assert estimate_prompt(prompt([part])) == 3 + 4 + 1_000


def test_audio_and_unknown_parts_count_by_a_thousandth_of_their_bytes():
    for kind in ("input_audio", "video_url"):
        assert estimate_prompt(attached(kind, "A" * 500_000)) == 3 + 4 + 1_000 + 500


def test_a_file_counts_by_a_hundredth_of_its_bytes():
    assert estimate_prompt(attached("file", "A" * 499_970)) == 3 + 4 + 1_000 + 5_000


def test_a_prompt_of_five_megabytes_counts_exactly():
    text = "中x" * 1_250_000
    assert estimate_prompt(prompt(text)) == 3 + 4 + estimate_text(text)


@given(BODIES)
def test_no_body_makes_the_estimate_fail(body):
    assert estimate_prompt(body) >= 3


def test_a_field_nested_too_deep_for_json_counts_nothing():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert estimate_prompt({"tools": deep}) == 3
    while deep:
        deep = deep.pop()
