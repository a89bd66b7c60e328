"""calibration.json: its values are used, and each error is one line that names the key."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from fluxbudgetd.config.calibration import Calibration, load_calibration
from harness.configuration import CALIBRATION, anything, holds, wrong

MAX = 2**63 - 1


def calibration_with(*path: str, value: object) -> bytes:
    made = msgspec.json.decode(msgspec.json.encode(CALIBRATION))
    at = made
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return msgspec.json.encode(made)


def test_calibration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert load_calibration(str(path)) is None
    path.write_bytes(calibration_with("later", value={"a": 1}))
    found = load_calibration(str(path))
    assert found is not None
    assert msgspec.to_builtins(found) == CALIBRATION
    path.write_bytes(calibration_with("slicing", "multiplier", value=None))
    found = load_calibration(str(path))
    assert found is not None
    assert found.slicing.multiplier is None


def test_calibration_of_version_0_1_0_is_read(tmp_path: Path) -> None:
    """It counted sliced runs, and knew nothing of reviews."""
    old = msgspec.json.decode(msgspec.json.encode(CALIBRATION))
    del old["reviews"], old["slicing"]["sliced_reviews"]
    path = tmp_path / "calibration.json"
    path.write_bytes(msgspec.json.encode(old))
    found = load_calibration(str(path))
    assert found is not None
    assert (found.slicing.multiplier, found.slicing.sliced_reviews, found.reviews) == (0.4, 0, {})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("v",), 2, "v is 2; allowed: 1"),
        (("v",), True, "v is true; allowed: 1"),
        (("phases",), [], "phases is an array; allowed: an object"),
        (("phases", "a b"), 1, 'phases."a b" is 1; allowed: an object with billing, sample_size, total'),
        (("phases", "executing", "billing", "mean"), -1, f"phases.executing.billing.mean is -1; allowed: 0 to {MAX}"),
        (
            ("phases", "executing", "total", "p50"), 1.0,
            f"phases.executing.total.p50 is 1.0; allowed: a whole number, 0 to {MAX}",
        ),
        (("agents", "x"), {}, "agents.x.billing is missing; allowed: an object with mean, p50, p90"),
        (("agents", "fd-safety", "sample_size"), -1, f"agents.fd-safety.sample_size is -1; allowed: 0 to {MAX}"),
        (("slicing", "multiplier"), 0, "slicing.multiplier is 0; allowed: a number, above 0, at most 10, or null"),
        (("slicing", "multiplier"), "x", 'slicing.multiplier is "x"; allowed: a number, above 0, at most 10, or null'),
        (("slicing", "median"), -0.5, "slicing.median is -0.5; allowed: a number, at least 0, or null"),
        (("slicing", "was"), None, "slicing.was is null; allowed: a number, above 0, at most 10"),
        (("reviews", "plan", "measured"), None, f"reviews.plan.measured is null; allowed: a whole number, 0 to {MAX}"),
        (("provenance", "runs"), -3, f"provenance.runs is -3; allowed: 0 to {MAX}"),
        (("provenance", "at"), 5, "provenance.at is 5; allowed: text"),
    ],
)  # fmt: skip
def test_error_message(tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(calibration_with(*path, value=value))
    assert wrong(lambda: load_calibration(str(file)), file) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1: Input data was truncated"),
        (b'{\n "v": 1,\n}', "line 3, column 1: JSON is malformed: trailing comma in object"),
        (b"[]", "the whole file is an array; allowed: an object with agents, phases, provenance, reviews, slicing, v"),
        (b"[" * 100_000, "line 1, column 100001: maximum recursion depth exceeded while deserializing an object"),
        (b'\n"\xff"', "line 2 has the byte 0xff; allowed: UTF-8"),
    ],
)
def test_invalid_json(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(content)
    assert wrong(lambda: load_calibration(str(file)), file) == message


JSON_PIECES = [
    "{", "}", "[", "]", ",", ":", '"v"', "1", "-1", "1e999", "9" * 5000, '"\\ud800"', "null", "true", '"phases"', "NaN",
    '"slicing"', " ", "\n", msgspec.json.encode(CALIBRATION).decode(), "\x00",
]  # fmt: skip


@given(content=anything(JSON_PIECES))
def test_any_bytes_are_a_calibration_or_an_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    assert holds(lambda: load_calibration(str(scratch)), Calibration)
