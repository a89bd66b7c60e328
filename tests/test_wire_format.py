"""The wire format: every message is encoded byte for byte as the fixture says."""

import json
from pathlib import Path

import msgspec

from fluxbudgetd.wire import messages
from harness.samples import samples

FIXTURE = Path(__file__).parent / "fixtures" / "wire.json"
ENCODED = {name: bytes.fromhex(text) for name, text in json.loads(FIXTURE.read_text()).items()}


def test_every_message_is_encoded_as_before() -> None:
    """Field names, their order and their types stay as they are, so no client sees a difference."""
    made = {name: messages.encode(sample) for name, sample in samples()}
    changed = [name for name in made if made[name] != ENCODED.get(name)]
    assert {name: msgspec.msgpack.decode(made[name]) for name in changed} == {}
    assert made.keys() == ENCODED.keys()


def test_every_encoded_message_is_decoded_as_before() -> None:
    for name, sample in samples():
        decode = messages.decode_request if name.startswith("request") else messages.decode_answer
        assert decode(ENCODED[name]) == sample, name
