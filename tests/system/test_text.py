"""Texts from outside: what can be stored, what a terminal is shown, and which words are secret."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.system.json_input import (
    LARGEST_INTEGER,
    MOST_LEVELS,
    MOST_PARTS,
    SMALLEST_INTEGER,
    parse_json,
    parse_object,
)
from orchestrator.system.recorded_command import recorded
from orchestrator.system.text import shown, shown_line, storable

ANY_TEXT = st.text(st.characters(exclude_categories=()))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda parts: st.lists(parts) | st.dictionaries(ANY_TEXT, parts),
    max_leaves=20,
)


@given(ANY_TEXT)
def test_any_text_becomes_storable(text: str) -> None:
    """Every text can afterwards be encoded and be in an environment; a plain one is unchanged."""
    clean = storable(text)
    assert b"\0" not in clean.encode()
    assert storable(clean) == clean


@given(ANY_TEXT)
def test_nothing_that_a_terminal_obeys_is_shown(text: str) -> None:
    """No control character but line feeds and tabs remains, and no line feed on one line."""
    assert all(char.isprintable() or char in "\n\t" or ord(char) >= 0x80 for char in shown(text))
    assert not set(shown(text)) & {"\x1b", "\x9b", "\r", "\b", "\u202e", "\u200b"}
    assert "\n" not in shown_line(text)


def test_plain_text_is_shown_as_it_is() -> None:
    """Text of any language, with line feeds and tabs, is not changed."""
    text = "zwölf 語 🙂\n\tend"
    assert shown(text) == storable(text) == text
    assert shown("\x1b]0;title\x07\u202e") == "\\x1b]0;title\\x07\\u202e"


@given(st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    """Whatever the bytes, parsing ends with a value whose texts can be encoded, or ValueError."""
    try:
        value = parse_json(data)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"[]", b"null", b"\xff", b""]
)
def test_hostile_json_is_a_value_error(data: bytes) -> None:
    """Deep nesting, endless numbers and other values than objects end in a ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        parse_object(data)


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a": ', "}"), ('[0, {"a": ', "}]")]
)
def test_json_is_a_hundred_levels_deep_at_most(opening: str, closing: str) -> None:
    """What copies, compares or shows a value needs a frame or more for each level of it."""
    levels = MOST_LEVELS // (2 if opening.startswith("[0") else 1)
    parse_json(opening * levels + "0" + closing * levels)
    parse_json(json.dumps("[" * 1000))
    parse_json("[" + "[]," * 1000 + "[]]")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(opening * (levels + 1) + "0" + closing * (levels + 1))


@pytest.mark.parametrize("value", [SMALLEST_INTEGER, LARGEST_INTEGER, 10**18, -(10**18)])
def test_integers_of_64_bits_are_read(value: int) -> None:
    """An inode and a seed are unsigned integers of 64 bits."""
    assert parse_json(json.dumps({"a": [value, value]})) == {"a": [value, value]}
    assert parse_object(json.dumps({"a": str(value) * 300})) == {"a": str(value) * 300}


@pytest.mark.parametrize("value", [SMALLEST_INTEGER - 1, LARGEST_INTEGER + 1, 10**4299, -(10**25)])
@pytest.mark.parametrize("is_text", [True, False])
def test_integers_of_more_bits_are_refused(value: int, is_text: bool) -> None:
    """Python neither shows nor counts on from an integer of thousands of digits."""
    text = json.dumps({"a": [value]})
    with pytest.raises(ValueError, match="more than 64 bits"):
        parse_json(text if is_text else text.encode())


@pytest.mark.parametrize(
    ("words", "shown_words"),
    [
        (["--token=abc"], ["--token=***"]),
        (["--token", "abc", "x"], ["--token", "***", "x"]),
        (["--hf-token", "abc"], ["--hf-token", "***"]),
        (["--wandb_api_key=abc=d"], ["--wandb_api_key=***"]),
        (["logger.api_key=abc"], ["logger.api_key=***"]),
        (["--dbPassword", "a b"], ["--dbPassword", "***"]),
        (["AWS_SECRET_ACCESS_KEY=abc"], ["AWS_SECRET_ACCESS_KEY=***"]),
        (["s3://key:secret@host/x"], ["s3://key:***@host/x"]),
        (["--login", "hf_abcdefghijklmnop"], ["--login", "hf_***"]),
        (["--jwt=eyJhbGciOi-_.eyJzdWIiOiIx.sig_natur"], ["--jwt=eyJhbGciOi-_.eyJ***"]),
        (
            ["--admin-token", "abc", "--backend_token=b"],
            ["--admin-token", "***", "--backend_token=***"],
        ),
        (["--new-token", "abc"], ["--new-token", "***"]),
        (["--auth-start-token=abc"], ["--auth-start-token=***"]),
        (["--token=a\0\ud800"], ["--token=***"]),
        (["--token", "--lr", "1"], ["--token", "--lr", "1"]),
    ],
)
def test_secrets_in_arguments_are_masked(words: list[str], shown_words: list[str]) -> None:
    """Values of secret names, passwords in addresses and well-known keys are masked."""
    assert recorded(["train.py", *words]) == ["train.py", *shown_words]


@pytest.mark.parametrize(
    "words",
    [
        ["--tokenizer", "gpt2"],
        ["--max-tokens=5"],
        ["--pad_token", "0"],
        ["--decoder_start_token", "0"],
        ["model.max_token=5"],
        ["--eos-token=</s>"],
        ["--author", "me"],
        ["--key", "loss"],
        ["--lr", "1e-3", "https://host:80/x@y"],
        ["-m", "train", "--num-token", "7"],
    ],
)
def test_other_arguments_are_recorded_as_they_are(words: list[str]) -> None:
    """Names of models and vocabularies that only resemble secrets are kept."""
    assert recorded(words) == words


def test_long_words_of_a_command_take_no_longer_than_many() -> None:
    """A program as an argument is searched once, and not anew from each of its letters."""
    words = ["a" * 1_000_000, "A." * 500_000, "-eyJ" * 250_000]
    assert recorded(words) == words


@pytest.mark.parametrize("text", ["[0, 0, 0]", '{"a": 0, "b": 0, "c": 0}', "[[[]]]", '["", "", {}'])
def test_json_of_very_many_parts_is_refused(text: str) -> None:
    """A text whose value would take a hundred times its room is not made into one."""
    with pytest.raises(ValueError, match="too many parts"):
        parse_json(text, most_parts=2)
    with pytest.raises(ValueError, match="too many parts"):
        parse_object(b'{"a": [' + b"[]," * MOST_PARTS + b"[]]}")
