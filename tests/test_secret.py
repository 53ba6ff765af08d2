import hashlib
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oneai_middleware import secret as secrets

VALID = "oneai-sk-" + "0" * 40 + "2kaqcA"  # the CRC-32 of forty zeros is 0x963FBB8E


def test_new_secrets_are_well_formed_and_all_different():
    made = {secrets.new_secret() for _ in range(200)}
    assert len(made) == 200
    assert all(secrets.is_well_formed(secret) for secret in made)
    assert all(re.fullmatch("oneai-sk-[0-9A-Za-z]{46}", secret) for secret in made)


def test_the_checksum_is_the_crc_32_of_the_random_part_in_base62():
    number = 0
    for character in VALID[-6:]:
        number = number * 62 + secrets.ALPHABET.index(character)
    assert number == 0x963FBB8E
    assert secrets.is_well_formed(VALID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oneai-sk-",
        VALID[:-1],
        VALID + "0",
        VALID + "\n",
        " " + VALID,
        VALID.upper(),
        VALID.replace("oneai", "other"),
        VALID[:-1] + "é",
        VALID.replace("0", "٠"),  # a zero to str.isdigit, not to us
        "oneai-sk-" + "0" * 46,
    ],
)
def test_anything_else_is_malformed(text):
    assert not secrets.is_well_formed(text)


@given(st.integers(9, 54), st.sampled_from(secrets.ALPHABET))
def test_one_wrong_character_is_always_noticed(place, character):
    assume(VALID[place] != character)
    assert not secrets.is_well_formed(VALID[:place] + character + VALID[place + 1 :])


@given(st.integers(9, 53))
def test_two_neighbours_exchanged_are_always_noticed(place):
    wrong = VALID[:place] + VALID[place + 1] + VALID[place] + VALID[place + 2 :]
    assume(wrong != VALID)
    assert not secrets.is_well_formed(wrong)


@given(st.text())
def test_no_text_is_an_error(text):
    assert not secrets.is_well_formed(text)
    assert not secrets.is_well_formed("oneai-sk-" + text)


def test_a_digest_is_the_sha_256_in_lower_case_hex():
    assert secrets.digest(VALID) == hashlib.sha256(VALID.encode("ascii")).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", secrets.digest(VALID))


def test_a_hint_shows_the_prefix_and_the_last_four_characters_alone():
    assert secrets.hint(VALID) == "oneai-sk-…aqcA"
