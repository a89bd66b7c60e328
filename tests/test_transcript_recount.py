"""The transcript source against a recount of the files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import Response
from fluxbudgetd.model.transcripts import ModelUsage
from harness.transcript_reader import SESSION, Reader, replaced
from harness.transcript_recount import Tokens, TranscriptRecount, files_of, plus
from harness.transcripts import Transcript, assistant_line, encoded, encoded_without

count = st.sampled_from((0, 1, 5, 70, 900, 900.0, -5, None, "7", 2.5, True, 2**63))
iteration = st.fixed_dictionaries(
    {
        "type": st.sampled_from(("message", "advisor_message", "compaction", "fallback")),
        "model": st.sampled_from(("claude-opus-4-7", None)),
        "input_tokens": count,
        "output_tokens": count,
    }
)
response = st.fixed_dictionaries(
    {
        "message": st.sampled_from(("m1", "m2", "m3", "m4", None)),
        "request": st.sampled_from(("r1", "r2", None)),
        "sidechain": st.booleans(),
        "model": st.sampled_from(("claude-opus-4-6", "claude-haiku-4-5", "<synthetic>")),
        "at": st.sampled_from(("2026-02-20T17:05:55.000Z", "2026-02-20T17:05:56Z", "1970-01-01T00:00:00Z", "soon")),
        "text": st.text(max_size=20),
        "stop_reason": st.sampled_from(("end_turn", None)),
        "iterations": st.none() | st.lists(iteration, max_size=3),
        "input_tokens": count,
        "output_tokens": count,
        "cache_read_input_tokens": count,
        "cache_creation_input_tokens": count,
        "cache_creation": st.none()
        | st.dictionaries(st.sampled_from(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")), count),
        "uuid": st.sampled_from(("u1", "u2", None)),
    }
)
foreign = st.sampled_from(
    (
        b"\n",
        b"\0\0\0\n",
        b'{"type":"user","message":{"content":"usage"}}\n',
        b'{"type":"user","message":{"usage":{"input_tokens":5000}}}\n',
        b'{"type":"assistant","message":{"usage":[5000]}}\n',
        b'{"type":"assistant","message":{"id":"m9","usage":{"input_tokens":5000}},"x":"\xff"}\n',
        b'{"type":"assistant","message":{"id":"m9","usage":{"input_tokens":5000}\n',
        b'["usage"]\n',
        b'{"type":"assistant","usage":' + b"[" * 5000 + b"]" * 5000 + b"}\n",
    )
)


def written(fields: dict[str, Any]) -> bytes:
    uuid, stop_reason = fields["uuid"], fields["stop_reason"]
    if fields["request"] is None and fields["message"] is not None:
        # (test_every_token.py has responses with a request id on only some of their lines.)
        fields = {**fields, "message": f"{fields['message']} of a relay"}
    line = assistant_line(
        SESSION, **{name: value for name, value in fields.items() if name not in ("uuid", "stop_reason")}
    )
    line["message"]["stop_reason"] = stop_reason
    return encoded(line | {"uuid": uuid}) if uuid else encoded_without(line, "uuid")


line = response.map(written) | foreign
any_file = st.integers(0, 2)
act = st.tuples(st.just("write"), any_file, st.integers(1, 700)) | st.tuples(
    st.sampled_from(("write", "read", "restart", "name", "cut", "replace")), any_file, st.just(100)
)


def counted(reader: Reader) -> dict[tuple[str, str], Tokens]:
    """Return what counts for each agent and model."""
    sums: dict[tuple[str, str], Tokens] = {}
    for response in reader.responses:
        parts: tuple[Response | ModelUsage, ...] = (response, *response.below)
        for one in parts:
            tokens = (one.input, one.output, one.cache_read, one.cache_creation)
            add(sums, response.agent, one.model, tokens)
    return sums


def recounted(recount: TranscriptRecount, reader: Reader) -> dict[tuple[str, str], Tokens]:
    """Return the same, after a recount has read what is new."""
    recount.read(SESSION, files_of(reader.claude_dir, SESSION), now_micros(), 0)
    sums: dict[tuple[str, str], Tokens] = {}
    for one in recount.counted():
        add(sums, one.agent, one.model, one.tokens)
    return sums


def add(sums: dict[tuple[str, str], Tokens], agent: str, model: str, tokens: Tokens) -> None:
    if any(tokens):
        sums[agent, model] = plus(sums.get((agent, model), (0, 0, 0, 0)), tokens)


class Scene:
    """A session's writers, their unwritten text, and the reader. Each method is one thing that may happen."""

    def __init__(self, claude_dir: Path, texts: Iterable[bytes]) -> None:
        transcript = Transcript(claude_dir, SESSION)
        self.writers = [transcript, transcript.agent("a"), transcript.agent("b", "deep")]
        self.texts = list(texts)
        self.reader = Reader(claude_dir)
        self.recount = TranscriptRecount()

    def write(self, which: int, length: int | None) -> None:
        text = self.texts[which]
        self.writers[which].line(text[:length])
        self.texts[which] = text[length:] if length is not None else b""

    def read(self, _which: int = 0, _length: int = 0) -> None:
        """Read, and compare with the recount."""
        reading = self.reader.read()
        assert reading.status.state in ("ok", "absent")
        assert counted(self.reader) == recounted(self.recount, self.reader)

    def restart(self, _which: int, _length: int) -> None:
        self.reader.restart()

    def name(self, which: int, _length: int) -> None:
        if which:
            self.writers[which].meta(agentType="fd-quality")

    def cut(self, which: int, length: int) -> None:
        self.read()
        path = self.writers[which].path
        if path.exists():
            os.truncate(path, max(0, path.stat().st_size - length))

    def replace(self, which: int, _length: int) -> None:
        self.read()
        if self.writers[which].path.exists():
            replaced(self.writers[which])


@settings(max_examples=60)
@given(texts=st.tuples(*[st.lists(line, max_size=12).map(b"".join)] * 3), acts=st.lists(act, max_size=60))
def test_totals_equal_a_recount(
    tmp_path_factory: pytest.TempPathFactory, texts: tuple[bytes, ...], acts: list[tuple[str, int, int]]
) -> None:
    """This holds after every reading, with any lines in any pieces, and files that are cut, replaced or restored."""
    scene = Scene(tmp_path_factory.mktemp("claude"), texts)
    for what, which, length in acts:
        getattr(scene, what)(which, length)
    for which in range(3):
        scene.write(which, None)
    scene.read()
