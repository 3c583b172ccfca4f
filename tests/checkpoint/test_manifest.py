"""manifest.json: what is written is read back, and nothing else is believed."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.manifest import FileRecord, Manifest, Reason, json_metrics
from tests.checkpoint.support import RUN_ID, manifest_of

RECORD = {"bytes": 3, "xxh3_128": "06b05ab6733a618578af5f94892f3950"}


def content(**changes: Any) -> dict[str, Any]:
    """A good manifest as it stands in the file, but for ``changes``; ... removes a key."""
    whole = json.loads(manifest_of(7, files={"state.pt": FileRecord(**RECORD)}).to_json())
    return {key: value for key, value in (whole | changes).items() if value is not ...}


def encoded(**changes: Any) -> bytes:
    return json.dumps(content(**changes)).encode()


@given(
    step=st.integers(0, 10**12 - 1),
    epoch=st.integers(0, 2**63 - 1),
    reason=st.sampled_from(Reason),
    healthy=st.booleans(),
    metrics=st.dictionaries(st.text(), st.floats()),
    files=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
        st.builds(FileRecord, bytes=st.integers(0, 2**63 - 1), xxh3_128=st.text()),
        min_size=1,
    ),
)
def test_manifest_survives_a_round_trip(**facts: Any) -> None:
    """Every manifest that a session saves is read back equal, non-finite metrics included."""
    manifest = manifest_of(facts.pop("step"), **facts)
    read = Manifest.from_json(manifest.to_json())
    # A NaN is equal to nothing, not even to itself.
    assert repr(read) == repr(manifest)


def test_manifest_is_strict_json() -> None:
    """Other programs can read it: it has no NaN and no Infinity, which JSON does not know."""
    metrics = {"loss": math.nan, "best": -math.inf, "accuracy": 0.5}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = manifest_of(1, metrics=metrics).to_json()
    assert json.loads(text, parse_constant=refuse)["metrics"] == {
        "loss": "nan",
        "best": "-inf",
        "accuracy": 0.5,
    }


def test_non_finite_metrics_become_text() -> None:
    """Finite metrics stay numbers, the others become text that float() reads."""
    assert json_metrics({"a": 1.5, "b": math.inf}) == {"a": 1.5, "b": "inf"}


def test_manifest_has_the_keys_of_the_format() -> None:
    """manifest.json has the keys and values of docs/reference/checkpoint-format.md."""
    assert content(time="2026-01-01T00:00:00+00:00") == {
        "format_version": 1,
        "run_id": RUN_ID,
        "step": 7,
        "epoch": 0,
        "reason": "periodic",
        "metrics": {"loss": 0.125},
        "healthy": True,
        "time": "2026-01-01T00:00:00+00:00",
        "files": {"state.pt": RECORD},
        "versions": {"python": "3.11.7"},
        "digests": {"rng": "06b05ab6"},
        "doubts": [],
    }
    assert Manifest.from_json(encoded()).files == {"state.pt": FileRecord(**RECORD)}


def test_unknown_manifest_keys_are_ignored() -> None:
    """A later version may add keys without a new format version."""
    assert Manifest.from_json(encoded(colour="green")).step == 7


def test_exactness_gives_each_reason_once() -> None:
    """Without doubts a checkpoint is EXACT; with some it says APPROXIMATE and why."""
    assert manifest_of(1).exactness == "EXACT"
    doubts = ["a stream is missing", "torch is another", "a stream is missing"]
    expected = "APPROXIMATE: a stream is missing; torch is another"
    assert manifest_of(1, doubts=doubts).exactness == expected


def test_total_bytes_is_the_size_of_all_files() -> None:
    """The size of a checkpoint is the sum of its files."""
    records = {"a": FileRecord(3, "x"), "b": FileRecord(4, "y")}
    assert manifest_of(1, files=records).total_bytes == 7


HOSTILE = {
    "empty": b"",
    "zeros": b"\0" * 4096,
    "not UTF-8": b"\xff\xfe{}",
    "torn": encoded()[:-20],
    "text behind": encoded() + b"x",
    "nested": b"[" * 1_000_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "huge number": b'{"format_version": 1, "step": ' + b"9" * 5000 + b"}",
    "later version": encoded(format_version=2),
    "version as text": encoded(format_version="1"),
    "no version": encoded(format_version=...),
    "run_id a number": encoded(run_id=7),
    "run_id null": encoded(run_id=None),
    "step negative": encoded(step=-1),
    "step a float": encoded(step=7.0),
    "step text": encoded(step="7"),
    "step true": encoded(step=True),
    "step NaN": encoded(step=math.nan),
    "epoch negative": encoded(epoch=-1),
    "epoch null": encoded(epoch=None),
    "unknown reason": encoded(reason="boredom"),
    "reason a list": encoded(reason=["periodic"]),
    "metrics a list": encoded(metrics=[1]),
    "metric a word": encoded(metrics={"loss": "low"}),
    "metric null": encoded(metrics={"loss": None}),
    "metric a list": encoded(metrics={"loss": [1]}),
    "metric beyond all floats": encoded(metrics={"loss": 10**400}),
    "healthy a number": encoded(healthy=1),
    "healthy text": encoded(healthy="true"),
    "time a number": encoded(time=0),
    "versions a list": encoded(versions=[]),
    "digests a list": encoded(digests=[]),
    "doubts a text": encoded(doubts="none"),
    "files a list": encoded(files=["state.pt"]),
    "no files": encoded(files={}),
    "record a number": encoded(files={"state.pt": 3}),
    "record a list": encoded(files={"state.pt": []}),
    "record null": encoded(files={"state.pt": None}),
    "record without size": encoded(files={"state.pt": {"xxh3_128": "0"}}),
    "record without digest": encoded(files={"state.pt": {"bytes": 3}}),
    "size negative": encoded(files={"state.pt": RECORD | {"bytes": -1}}),
    "size beyond any file": encoded(files={"state.pt": RECORD | {"bytes": 10**400}}),
    "size text": encoded(files={"state.pt": RECORD | {"bytes": "3"}}),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_manifest_is_refused(text: bytes) -> None:
    """A manifest that cannot be used raises ValueError that names the file."""
    with pytest.raises(ValueError, match=r".+") as caught:
        Manifest.from_json(text)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("key", [key for key in content() if key != "format_version"])
def test_missing_manifest_key_is_named(key: str) -> None:
    """A manifest without one of its keys is refused with the key."""
    with pytest.raises(ValueError, match=f"manifest.json lacks '{key}'"):
        Manifest.from_json(encoded(**{key: ...}))


@pytest.mark.parametrize(
    "name",
    [
        "../state.pt",
        "..",
        ".",
        "",
        "/etc/passwd",
        "below/state.pt",
        "state.pt/",
        "..\\state.pt",
        ".hidden",
        "-rf",
        "state.pt\0",
        "state.pt\n",
        " state.pt",
        "zustand\u202etp.pt",
    ],
)
def test_manifest_with_a_file_outside_the_directory_is_refused(name: str) -> None:
    """A name that could lead elsewhere is never read, verified or deleted."""
    with pytest.raises(ValueError, match=r"manifest.json names a file outside its directory"):
        Manifest.from_json(encoded(files={"state.pt": RECORD, name: RECORD}))


def test_non_finite_metrics_are_read_in_both_forms() -> None:
    """NaN is read as text, as manifests have it, and as a bare word, as Python's json writes it."""
    for written in ("nan", math.nan):
        assert math.isnan(Manifest.from_json(encoded(metrics={"loss": written})).metrics["loss"])
