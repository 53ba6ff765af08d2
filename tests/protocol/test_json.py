"""What is taken for JSON, and what is not."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.protocol import json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(VALUES)
def test_what_is_encoded_decodes_to_the_same(value):
    assert json.decode(json.encode(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="blank"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"Infinity", id="Infinity"),
        pytest.param(b"[-Infinity]", id="minus Infinity"),
        pytest.param(b"1e400", id="a float out of range"),
        pytest.param(b"1" * 5000, id="an integer of 5000 digits"),
        pytest.param(b"[" * 100_000, id="100,000 brackets, open"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="100,000 brackets, closed"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="100,000 objects"),
        pytest.param(rb'"\ud800"', id="a lone high surrogate"),
        pytest.param(rb'"\udc00"', id="a lone low surrogate"),
        pytest.param(rb'{"\ud800":1}', id="a lone surrogate in a name"),
        pytest.param(b'"\xed\xa0\x80"', id="a surrogate in UTF-8"),
        pytest.param(b'"\xff"', id="no UTF-8"),
        pytest.param(b'"\xc3', id="cut in a character"),
        pytest.param('{"a":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"a":1}'.encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param('{"a":1}'.encode("utf-32"), id="UTF-32"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param(b"{} x", id="something behind it"),
        pytest.param(b"{}{}", id="two texts"),
        pytest.param(b"[1,]", id="a comma too many"),
        pytest.param(b"{'a':1}", id="single quotes"),
        pytest.param(b'"a\nb"', id="a raw line break in a string"),
        pytest.param(b"01", id="a leading zero"),
    ],
)
def test_what_is_not_json_is_refused_without_a_word_of_its_content(data):
    """Conformance 54."""
    with pytest.raises(json.MalformedJSON) as caught:
        json.decode(data)
    assert str(caught.value).isidentifier()
    assert caught.value.__cause__ is None


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_malformed(data):
    with contextlib.suppress(json.MalformedJSON):
        json.decode(data)


def test_blank_lines_around_json_are_no_part_of_it():
    """Conformance 54."""
    assert json.decode(b"\n\r\n \n{}\n\n") == {}


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param({"\udc00": 1}, id="a lone surrogate in a name"),
        pytest.param(object(), id="no JSON type"),
        pytest.param({(1, 2): 3}, id="a name that is no string"),
    ],
)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(json.MalformedJSON):
        json.encode(value)


def test_what_is_nested_without_end_is_refused():
    with pytest.raises(json.MalformedJSON):
        json.encode(deep(100_000))


def test_what_some_clients_take_for_a_line_end_is_escaped():
    """Conformance 76."""
    assert json.encode("\u2028\u2029\x85\né") == rb'"\u2028\u2029\u0085\n' + "é".encode() + b'"'


def test_structure_is_bounded_and_text_is_not():
    most = b"[" + b"1," * (json.STRUCTURAL_LIMIT - 1) + b"1]"
    assert not json.is_too_complex(most)
    assert json.is_too_complex(b"[" + most + b"]")
    assert not json.is_too_complex(b'"' + b"x" * 10 * json.STRUCTURAL_LIMIT + b'"')


def test_commas_in_text_are_no_structure():
    table = json.encode({"content": 'a,"b",[c],{d}\\n' * 100_000})
    assert not json.is_too_complex(table)


@pytest.mark.parametrize("data", [b"[],", b"0,", b'"",', b'"\\"",', b'{"a":[0]},'])
def test_structure_is_counted_whatever_stands_beside_it(data):
    assert json.is_too_complex(b"[" + data * (json.STRUCTURAL_LIMIT + 1))


@pytest.mark.parametrize("data", [b'"', b'\\"', b'"\\', b'"\\"', b'",'])
def test_text_that_never_ends_is_counted_in_linear_time(data):
    json.is_too_complex(data * 500_000 + b"," * (json.STRUCTURAL_LIMIT + 1))
