"""Reading Claude Code's transcripts: each response once, whatever becomes of the files."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import Copy, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import TranscriptSource, merged, stamps
from fluxbudgetd.wire.text import fold
from harness.daemon import wait_for
from harness.privilege import OBEDIENT
from harness.transcripts import Counted, Tokens, Transcript, assistant_line, encoded, recount

SESSION = "0b5ce9a2-2f6a-4f0e-9d3c-1f2e3d4c5b6a"
MIB = 1 << 20


class Reader:
    """Follows one session as the daemon does: keeps copies by `merged`, and what a reset makes void goes."""

    def __init__(self, claude: Path, session: str = SESSION) -> None:
        self.claude = claude
        self.session = session
        self.source = TranscriptSource(str(claude))
        self.kept: dict[int, tuple[Copy, ...]] = {}
        self.files: tuple[TranscriptFile, ...] = ()
        self.came = 0

    def look(self) -> TranscriptReading:
        """Take in one reading."""
        reading = self.source.read(self.session)
        void = reading.reset or frozenset()
        self.kept = {
            name: tuple(copy for copy in copies if copy.file not in void) for name, copies in self.kept.items()
        }
        for copy in reading.copies:
            known = self.kept.get(copy.message, ())
            gone, new = merged(known, copy)
            self.kept[copy.message] = (*(one for one in known if one not in gone), *new)
        self.came += len(reading.copies)
        self.files = reading.files
        return reading

    def read(self) -> TranscriptReading:
        """Read until there is no more; return the last reading."""
        while (reading := self.look()).more:
            assert self.source.changed(self.session)
        return reading

    def settle(self) -> None:
        """Read until nothing has changed since: a directory that was just made may change again unseen."""

        def settled() -> bool:
            self.read()
            return not self.source.changed(self.session)

        wait_for(settled, "the directories to be old enough")

    def restart(self) -> None:
        """Go on as another process would, with what was kept."""
        files = msgspec.msgpack.decode(msgspec.msgpack.encode(self.files), type=tuple[TranscriptFile, ...])
        self.source = TranscriptSource(str(self.claude))
        self.source.restore(self.session, files)

    @property
    def counted(self) -> list[Counted]:
        return sorted(
            Counted(copy.agent, copy.model, (copy.input, copy.output, copy.cache_read, copy.cache_creation))
            for copies in self.kept.values()
            for copy in copies
        )

    @property
    def total(self) -> int:
        return sum(copy.size for copies in self.kept.values() for copy in copies)

    @property
    def agents(self) -> dict[str, int]:
        """Return agent → tokens."""
        found: dict[str, int] = {}
        for one in self.counted:
            found[one.agent] = found.get(one.agent, 0) + sum(one.tokens)
        return found

    def recounted(self) -> list[Counted]:
        """Return what the files that are there come to, counted again from their first byte."""
        paths = [Path(os.fsdecode(file.path.encode())) for file in self.files]
        return recount(
            {
                file.number: (path.read_bytes(), file.agent)
                for file, path in zip(self.files, paths, strict=True)
                if path.exists()
            }
        )


@pytest.fixture
def claude(tmp_path: Path) -> Path:
    return tmp_path / "claude"


@pytest.fixture
def main(claude: Path) -> Transcript:
    return Transcript(claude, SESSION)


@pytest.fixture
def reader(claude: Path) -> Reader:
    return Reader(claude)


# Which copies count


def copy_of(size: int, *, key: int = 1, sidechain: bool = False, file: int = 1, at: int | None = 5) -> Copy:
    return Copy(1, key, sidechain, file, at, "agent", "model", size, 0, 0, 0)


@pytest.mark.parametrize(
    ("copies", "kept"),
    [
        pytest.param([copy_of(1), copy_of(3), copy_of(2)], [1], id="the largest"),
        pytest.param([copy_of(3, key=1), copy_of(2, key=2)], [0, 1], id="each request"),
        pytest.param([copy_of(9, sidechain=True), copy_of(2)], [1], id="no sidechain beside one that is none"),
        pytest.param(
            [copy_of(9, sidechain=True), copy_of(2, key=2), copy_of(1, key=3)], [1, 2], id="nor beside several"
        ),
        pytest.param(
            [copy_of(3, key=1, sidechain=True), copy_of(4, key=2, sidechain=True)], [1], id="sidechains by message"
        ),
        pytest.param([copy_of(3, at=7), copy_of(3, at=6)], [1], id="of equal ones the earliest"),
        pytest.param([copy_of(3, at=None), copy_of(3, at=6)], [1], id="a time before none"),
        pytest.param([copy_of(3, file=2), copy_of(3, file=1)], [1], id="of equal times the first file"),
        pytest.param([copy_of(3), copy_of(3)], [0], id="once"),
        pytest.param([copy_of(0)], [0], id="no tokens"),
    ],
)
def test_which_copies_count(copies: list[Copy], kept: list[int]) -> None:
    for order in itertools.permutations(copies):
        assert set(fold_all(order)) == {copies[index] for index in kept}


def fold_all(copies: Iterable[Copy]) -> tuple[Copy, ...]:
    kept: tuple[Copy, ...] = ()
    for copy in copies:
        gone, new = merged(kept, copy)
        assert set(gone) <= set(kept)
        assert not set(new) & set(kept)
        kept = (*(one for one in kept if one not in gone), *new)
    return kept


any_copy = st.builds(
    Copy,
    message=st.just(1),
    key=st.integers(1, 3),
    sidechain=st.booleans(),
    file=st.integers(1, 2),
    at=st.sampled_from((None, 1, 2)),
    agent=st.sampled_from("ab"),
    model=st.sampled_from(("", "m")),
    input=st.integers(0, 2),
    output=st.integers(0, 2),
    cache_read=st.integers(0, 1),
    cache_creation=st.integers(0, 1),
)


@given(st.lists(any_copy, max_size=8), st.randoms())
def test_order_and_repetition_do_not_matter(copies: list[Copy], random: Any) -> None:
    kept = fold_all(copies)
    again = copies * 2
    random.shuffle(again)
    assert set(fold_all(again)) == set(kept)
    assert len(kept) == len(set(kept))
    # The plain grouping, afterwards.
    own = [copy for copy in copies if not copy.sidechain]
    groups = {copy.key for copy in own} if own else {0}
    assert len(kept) == (len(groups) if copies else 0)
    for copy in kept:
        rivals = [one for one in own if one.key == copy.key] if own else copies
        assert copy in rivals
        assert copy.size == max(one.size for one in rivals)
        rivals = [one for one in rivals if one.size == copy.size]
        billing = copy.input + copy.output
        assert billing == max(one.input + one.output for one in rivals)
        rivals = [one for one in rivals if one.input + one.output == billing]
        assert copy.at == min((one.at for one in rivals if one.at is not None), default=None)
        assert copy.file == min(one.file for one in rivals if one.at == copy.at)


# What a line says


def taken(claude: Path, *lines: bytes) -> tuple[list[Copy], TranscriptFile]:
    """Return what these lines give, as the only ones of a session."""
    writer = Transcript(claude, SESSION)
    writer.line(b"".join(lines))
    reading = TranscriptSource(str(claude)).read(SESSION)
    assert reading.status.state == "ok"
    assert not reading.more
    (file,) = reading.files
    assert file.offset == writer.path.stat().st_size
    return list(reading.copies), file


def test_a_line_whole(claude: Path) -> None:
    line = encoded(assistant_line(SESSION, tokens=(1, 20, 300, 4000), at="2026-02-20T17:05:55.250Z"))
    (copy,), _ = taken(claude, line)
    assert (copy.input, copy.output, copy.cache_read, copy.cache_creation, copy.size) == (1, 20, 300, 4000, 4321)
    assert (copy.agent, copy.model, copy.sidechain) == ("main-session", "claude-opus-4-6", False)
    assert copy.at == 1771607155250000
    assert 0 <= copy.message < 2**63
    assert 0 <= copy.key < 2**63


@pytest.mark.parametrize(
    ("usage", "expected", "anomalies"),
    [
        ({"input_tokens": 7}, (7, 0, 0, 0), 0),
        ({"input_tokens": None}, (0, 0, 0, 0), 0),
        ({"input_tokens": -7, "output_tokens": 5}, (0, 5, 0, 0), 1),
        ({"input_tokens": 7.0, "output_tokens": "7"}, (0, 0, 0, 0), 2),
        ({"input_tokens": True, "output_tokens": False}, (0, 0, 0, 0), 2),
        ({"input_tokens": [7], "output_tokens": {"n": 7}}, (0, 0, 0, 0), 2),
        ({"input_tokens": 2**63 - 1}, (2**63 - 1, 0, 0, 0), 0),
        ({"input_tokens": 2**63, "output_tokens": 10**40, "cache_read_input_tokens": 10**4000}, (0, 0, 0, 0), 3),
        ({"cache_creation_input_tokens": 9, "cache_creation": None}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": [1]}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {}}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, (0, 0, 0, 4), 0),
        (
            {
                "cache_creation_input_tokens": "x",
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            },
            (0, 0, 0, 7),
            0,
        ),
        (
            {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": -4},
            },
            (0, 0, 0, 0),
            1,
        ),
        (
            {"cache_creation": {"ephemeral_5m_input_tokens": 2**63 - 1, "ephemeral_1h_input_tokens": 1}},
            (0, 0, 0, 0),
            1,
        ),
    ],
)
def test_counts(claude: Path, usage: dict[str, Any], expected: Tokens, anomalies: int) -> None:
    (copy,), file = taken(claude, encoded(assistant_line(SESSION, **usage)))
    assert (copy.input, copy.output, copy.cache_read, copy.cache_creation) == expected
    assert (file.anomalies, file.skipped) == (anomalies, 0)


USAGE = b'"message":{"id":"m","usage":{"input_tokens":5}}'


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"type":"assistant","x":"\xff\xfe",' + USAGE + b"}", id="invalid UTF-8 in a string"),
        pytest.param(b'{"type":"assistant",\xff' + USAGE + b"}", id="invalid UTF-8 outside"),
        pytest.param(b'{"type":"assistant","x":"\0",' + USAGE + b"}", id="NUL in a string"),
        pytest.param(b"\0" * 5000 + b'{"type":"assistant",' + USAGE + b"}", id="NULs"),
        pytest.param(b'{"type":"assistant","x":' + b"[" * 99_999 + b"]" * 99_999 + b"," + USAGE + b"}", id="deep JSON"),
        pytest.param(b'{"type":"assistant","x":' + b"[" * 99_999 + USAGE, id="deep and broken"),
        pytest.param(b'{"type":"assistant",' + USAGE, id="cut"),
        pytest.param(b'{"type":"assistant",' + USAGE + b"}{}", id="two"),
        pytest.param(b'["usage"]', id="no object"),
        pytest.param(b'"usage"', id="a string"),
        pytest.param(b'{"type":"assistant","message":{"usage":5}}', id="usage a number"),
        pytest.param(b'{"type":"assistant","message":{"usage":null}}', id="usage null"),
        pytest.param(b'{"type":"assistant","message":{"usage":[5]}}', id="usage an array"),
        pytest.param(b'{"type":"assistant","message":["usage"]}', id="message an array"),
        pytest.param(b'{"type":"assistant","message":{"usage":{"input_tokens":05}}}', id="no number"),
    ],
)
def test_lines_that_are_skipped_and_counted(claude: Path, line: bytes) -> None:
    good = encoded(assistant_line(SESSION, "after", tokens=(3, 0, 0, 0)))
    (copy,), file = taken(claude, line + b"\n", good)
    assert copy.size == 3
    assert (file.skipped, file.anomalies) == (1, 0)
    note = f"{file.path}: 1 lines could not be read"
    assert TranscriptSource(str(claude)).read(SESSION).status.notes == (note,)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no JSON at all \xff \0", id="garbage"),
        pytest.param(b'{"type":"user","message":{"role":"user","content":"hello"}}', id="a prompt"),
        pytest.param(b'{"type":"user","message":"usage","usage":[1]}', id="another's usage"),
        pytest.param(b'{"type":"user","message":{"usage":5}}', id="another's, misshapen"),
        pytest.param(b'{"type":"user","toolUseResult":{"usage":{"input_tokens":5}}}', id="a tool's"),
        pytest.param(b'{"type":5,' + USAGE + b"}", id="a type that is none"),
        pytest.param(b'{"type":"assistant","message":{"content":"no \\"usage\\" here"}}', id="quoted"),
        pytest.param(b'{"type":"assistant","message":{"content":{"usage":1}}}', id="elsewhere"),
        pytest.param(b'{"type":"file-history-snapshot","snapshot":{}}', id="of a kind that came later"),
    ],
)
def test_lines_that_are_nobodys_business(claude: Path, line: bytes) -> None:
    copies, file = taken(claude, line + b"\n")
    assert (copies, file.skipped, file.anomalies) == ([], 0, 0)


@pytest.mark.parametrize(
    ("escaped", "size"),
    [(rb"\ud83d", 5), (rb"\ude00", 5), (rb"\ud83d\ude00", 5), (rb"\\ud83d", 5), (rb"\ud83d\ud83d\ude00\\\u00e9", 5)],
)
def test_half_an_emoji_is_no_damage(claude: Path, escaped: bytes, size: int) -> None:
    """JavaScript writes a lone surrogate, as is left when a text is cut, as an escape."""
    usage = USAGE.replace(b'"id"', rb'"model":"\"\u00e9\ud83d\ude00","id"')
    (copy,), file = taken(claude, b'{"type":"assistant","x":"' + escaped + b'",' + usage + b"}\n")
    assert (copy.size, copy.model, file.skipped) == (size, '"é😀', 0)


def without(line: dict[str, Any], *names: str) -> bytes:
    for name in names:
        line.pop(name, None)
        line["message"].pop(name, None)
    return encoded(line)


def test_responses_without_an_id(claude: Path) -> None:
    """The line's uuid stands in for the message's id; without that each line is one of its own."""
    by_uuid = assistant_line(SESSION, None, tokens=(5, 0, 0, 0))
    nameless = without(assistant_line(SESSION, None, tokens=(7, 0, 0, 0)), "uuid")
    odd = assistant_line(SESSION, tokens=(9, 0, 0, 0)) | {"uuid": "msg_1"}
    odd["message"]["id"] = 17
    named = assistant_line(SESSION, "msg_1", tokens=(11, 0, 0, 0))
    copies, _ = taken(claude, encoded(by_uuid) * 2, nameless * 2, encoded(odd), encoded(named))
    assert [copy.size for copy in copies] == [5, 5, 7, 7, 9, 11]
    names = [copy.message for copy in copies]
    assert names[0] == names[1]
    assert len(set(names)) == 5


def test_requests(claude: Path) -> None:
    """A request id that is missing, or none, is none; each other is one."""
    lines = [
        assistant_line(SESSION, "m", request=None),
        assistant_line(SESSION, "m") | {"requestId": None},
        assistant_line(SESSION, "m") | {"requestId": ["r"]},
        assistant_line(SESSION, "m", request=""),
        assistant_line(SESSION, "m", request="r1"),
        assistant_line(SESSION, "m", request="r2"),
        assistant_line(SESSION, "m2", request="r2"),
    ]
    copies, _ = taken(claude, *map(encoded, lines))
    assert len({copy.message for copy in copies}) == 2
    assert [len({copy.key for copy in group}) for group in (copies[:4], copies[3:])] == [1, 4]


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ("claude-opus-4-6", "claude-opus-4-6"),
        ("<synthetic>", ""),
        (None, ""),
        (5, ""),
        ("modèle", "modèle"),
        ("\uef80", fold("\uef80".encode())),
    ],
)
def test_models(claude: Path, given: Any, model: str) -> None:
    (copy,), _ = taken(claude, encoded(assistant_line(SESSION, model=given)))
    assert copy.model == model


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("yesterday", None),
        ("", None),
        (None, None),
        ({}, None),
    ],
)
def test_times(claude: Path, given: Any, at: int | None) -> None:
    (copy,), _ = taken(claude, encoded(assistant_line(SESSION, at=given)))
    assert copy.at == at


@pytest.mark.parametrize(
    ("given", "sidechain"), [(True, True), (False, False), (None, False), ("true", False), (1, False)]
)
def test_sidechains(claude: Path, given: Any, sidechain: bool) -> None:
    (copy,), _ = taken(claude, encoded(assistant_line(SESSION, sidechain=given)))
    assert copy.sidechain is sidechain


# Reading on


def test_reads_on_from_the_last_complete_line(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    main.half("m2", tokens=(20, 0, 0, 0))
    reader.read()
    assert reader.total == 1
    main.rest()
    assert reader.source.changed(SESSION)
    reader.read()
    assert reader.total == 21
    main.response("m2", tokens=(25, 0, 0, 0))
    reader.read()
    assert reader.total == 26
    assert reader.came == 3


def test_changed(main: Transcript, reader: Reader) -> None:
    """Only what really changes makes it true again; a half line that was seen does not."""
    assert reader.source.changed(SESSION)
    reader.settle()
    main.response(tokens=(1, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    main.half("m2")
    assert reader.source.changed(SESSION)
    reader.read()
    for _ in range(3):
        assert not reader.source.changed(SESSION)
    main.line(b"more of it")
    assert reader.source.changed(SESSION)
    reader.read()
    assert not reader.source.changed(SESSION)
    reader.source.forget(SESSION)
    assert reader.source.changed(SESSION)


def test_appends_within_one_tick_of_the_clock(main: Transcript, reader: Reader) -> None:
    main.response("m0")
    reader.settle()
    for number in range(1, 200):
        main.response(f"m{number}", tokens=(1, 0, 0, 0))
        assert reader.source.changed(SESSION)
        reader.read()
        assert not reader.source.changed(SESSION)
        assert reader.total == number


def test_a_directory_that_has_just_changed_is_looked_at_again(tmp_path: Path) -> None:
    """Until its time is so old that another change would show."""
    for number in range(20):
        (tmp_path / str(number)).touch()
        found = stamps.directory_stamp(str(tmp_path))
        age = time.time_ns() - tmp_path.stat().st_ctime_ns
        assert found == stamps.UNSETTLED or age >= 50_000_000
    wait_for(lambda: stamps.directory_stamp(str(tmp_path)) == stamps.stamp(str(tmp_path)), "the directory to settle")
    assert stamps.directory_stamp(str(tmp_path / "none")) == stamps.MISSING


def test_an_unchanged_file_is_not_read_again(main: Transcript, reader: Reader) -> None:
    main.response(tokens=(1, 0, 0, 0))
    reader.settle()
    came, files = reader.came, reader.files
    os.utime(main.path)
    reading = reader.read()
    assert (reader.came, reading.files, reading.reset) == (came, files, None)


def test_a_long_half_line_that_becomes_another(main: Transcript, reader: Reader) -> None:
    """What was looked through and held no line's end is looked through again when it is something else by now."""
    main.response("m1", tokens=(1, 0, 0, 0))
    offset = main.path.stat().st_size
    main.line(b"z" * MIB)
    reader.settle()
    os.truncate(main.path, offset + 5)
    main.line(b"\n")
    main.response("m2", tokens=(20, 0, 0, 0))
    main.line(b"y" * MIB)
    reader.read()
    assert reader.total == 21
    os.truncate(main.path, offset + 5)
    main.line(b"\n")
    reader.settle()
    replaced(main)
    reader.read()
    assert reader.total == 7


def test_a_half_line_that_becomes_another(main: Transcript, reader: Reader) -> None:
    """The same file by all that can be seen: nothing came from it, and it looks the same where reading stopped."""
    main.line(b"z" * 2000)
    reader.settle()
    os.truncate(main.path, 0)
    main.response("new", tokens=(7, 0, 0, 0))
    main.line(b"z" * 2000)
    reader.read()
    assert reader.total == 7


def test_a_half_line_in_another_file(main: Transcript, reader: Reader) -> None:
    """Nothing has come from the file yet, and the other one looks the same where reading stopped."""
    main.line(b"z" * MIB)
    reader.settle()
    other = main.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line(SESSION, "new", tokens=(7, 0, 0, 0))) + b"z" * MIB)
    other.replace(main.path)
    reader.read()
    assert reader.total == 7


def test_a_look_is_bounded(main: Transcript, reader: Reader) -> None:
    """A long history comes in several looks, which never say more than there is."""
    text = "x" * 1000
    lines = [encoded(assistant_line(SESSION, f"m{n}", tokens=(1, 0, 0, 0), text=text)) for n in range(15_000)]
    main.line(b"".join(lines))
    agent = main.agent("a")
    agent.line(b"".join(lines[:9000]))
    looks = 0
    while True:
        before = sum(file.offset for file in reader.files)
        reading = reader.look()
        looks += 1
        assert sum(file.offset for file in reader.files) - before < 8 * MIB + 2000  # with the line that was under way
        assert reader.total <= 15_000
        if not reading.more:
            break
    assert reader.total == 15_000
    assert looks >= 3
    assert reader.counted == reader.recounted()


def test_a_look_that_ends_with_a_file(main: Transcript, reader: Reader) -> None:
    """Exactly as much as a look reads, and one more file."""
    main.response("m1", tokens=(1, 0, 0, 0))
    main.line(b"\n" * (8 * MIB - main.path.stat().st_size))
    main.agent("a").response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    assert reader.total == 21
    replaced(main)
    main.line(b"\n" * (8 * MIB - main.path.stat().st_size))
    assert reader.look().more
    assert reader.source.changed(SESSION)
    assert not reader.look().more
    assert reader.total == 27


def test_lines_across_chunks(main: Transcript, reader: Reader) -> None:
    """Lines of all lengths around those that are read at once, and the longest that is read at all."""
    for length in (1, 300 << 10, MIB, 5, 3 * MIB, 100, 8 * MIB - 1000, 7):
        main.response(f"m{length}", tokens=(length, 0, 0, 0), text="y" * length)
    reader.read()
    assert reader.counted == reader.recounted()
    assert len(reader.counted) == 8
    assert reader.files[0].skipped == 0


def long_line(path: Path, length: int) -> None:
    """Append a line with usage that is too long to be read."""
    line = encoded(assistant_line(SESSION, "long", tokens=(999, 0, 0, 0), text="@"))
    head, tail = line.split(b"@")
    with path.open("ab") as file:
        file.write(head)
        for _ in range(length // MIB):
            file.write(b"z" * MIB)
        file.write(tail)


def test_a_long_line_is_passed_over(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    long_line(main.path, 50 * MIB)
    main.response("m2", tokens=(2, 0, 0, 0))
    tracemalloc.start()
    try:
        reader.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * MIB
    assert reader.total == 3
    assert reader.files[0].skipped == 1


def test_a_long_line_that_is_being_written(main: Transcript, reader: Reader) -> None:
    """It is looked through once, in many looks, and counted when it ends; also across a restart."""
    main.response("m1", tokens=(1, 0, 0, 0))
    offset = main.path.stat().st_size
    main.line(b'{"usage"' + b"z" * 9 * MIB)
    reader.settle()
    assert (reader.files[0].offset, reader.files[0].skipped) == (offset, 0)
    main.line(b"z" * 5)
    reader.read()
    reader.restart()
    main.line(b"\n")
    main.response("m2", tokens=(2, 0, 0, 0))
    reader.read()
    assert (reader.total, reader.files[0].skipped) == (3, 1)


# Files that become others


def cut(writer: Transcript) -> None:
    os.truncate(writer.path, 0)


def cut_and_regrown(writer: Transcript) -> None:
    size = writer.path.stat().st_size
    os.truncate(writer.path, 0)
    writer.response("new", tokens=(7, 0, 0, 0), text="n" * size)


def cut_in_a_line(writer: Transcript) -> None:
    os.truncate(writer.path, writer.path.stat().st_size - 3)


def replaced(writer: Transcript) -> None:
    other = writer.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line(SESSION, "new", tokens=(7, 0, 0, 0))))
    other.replace(writer.path)


def created_again(writer: Transcript) -> None:
    writer.path.unlink()
    writer.response("new", tokens=(7, 0, 0, 0))


def rewritten_in_place(writer: Transcript) -> None:
    """The same inode, the same size."""
    raw = writer.path.read_bytes()
    with writer.path.open("r+b") as file:
        file.write(raw.replace(b'"input_tokens":100', b'"input_tokens":333'))


def emptied_and_written(writer: Transcript) -> None:
    writer.path.write_bytes(b"")
    writer.half("new")


@pytest.mark.parametrize(
    "become",
    [cut, cut_and_regrown, cut_in_a_line, replaced, created_again, rewritten_in_place, emptied_and_written],
)
@pytest.mark.parametrize("restart", [False, True])
def test_another_file_under_the_name(
    main: Transcript, reader: Reader, become: Callable[[Transcript], None], restart: bool
) -> None:
    """Every file that is there is read again: what one has lost may have put out what another has."""
    one, two = main.agent("one"), main.agent("two")
    main.response("m1", tokens=(1, 0, 0, 0))
    one.response("both", tokens=(100, 0, 0, 0))
    two.response("both", tokens=(90, 0, 0, 0))
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-one": 100}
    become(one)
    if restart:
        reader.restart()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert set(reading.reset or ()) == {file.number for file in reader.files}
    assert reader.counted == reader.recounted()
    assert reader.agents["main-session"] == 1
    two.response("more", tokens=(1000, 0, 0, 0))
    assert reader.read().reset is None
    assert reader.counted == reader.recounted()


def test_another_file_that_ends_alike(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(100, 0, 0, 0))
    main.response("m2", tokens=(1, 0, 0, 0))
    reader.settle()
    raw = main.path.read_bytes()
    other = main.path.with_suffix(".new")
    other.write_bytes(raw.replace(b'"input_tokens":100', b'"input_tokens":333'))
    other.replace(main.path)
    assert reader.read().reset is not None
    assert reader.total == 334


def test_a_file_that_has_gone_keeps_what_it_gave(main: Transcript, reader: Reader) -> None:
    """Also when another one is replaced meanwhile; and when it comes back, it is read again."""
    one, two = main.agent("one"), main.agent("two")
    for writer, size in ((main, 1), (one, 10), (two, 100)):
        writer.response(f"m{size}", tokens=(size, 0, 0, 0))
    reader.settle()
    numbers = {file.path: file.number for file in reader.files}
    one.path.unlink()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert (reading.reset, reading.status.state, reader.total) == (None, "ok", 111)
    assert len(reading.files) == 3
    replaced(two)
    reading = reader.read()
    assert set(reading.reset or ()) == {numbers[str(main.path)], numbers[str(two.path)]}
    assert reader.agents == {"main-session": 1, "agent-one": 10, "agent-two": 7}
    one.response("m9", tokens=(9, 0, 0, 0))
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-one": 9, "agent-two": 7}
    assert {file.path: file.number for file in reader.files} == numbers


def test_all_files_gone(main: Transcript, reader: Reader) -> None:
    assert reader.read().status.state == "absent"
    main.response(tokens=(5, 0, 0, 0))
    assert reader.read().status.state == "ok"
    main.path.unlink()
    reading = reader.read()
    assert (reading.status.state, reading.reset, reader.total) == ("absent", None, 5)
    assert SESSION in reading.status.detail
    assert "--claude-dir" in reading.status.hint
    (file,) = reading.files
    assert file.offset > 0


def test_a_reset_is_bounded_too(main: Transcript, reader: Reader) -> None:
    """What is void is void at once; what takes its place comes in several looks."""
    big = main.agent("big")
    text = "x" * 10_000
    big.line(b"".join(encoded(assistant_line(SESSION, f"m{n}", tokens=(1, 0, 0, 0), text=text)) for n in range(2000)))
    main.response("m", tokens=(5000, 0, 0, 0))
    reader.settle()
    assert reader.total == 7000
    replaced(main)
    first = reader.look()
    assert first.more
    assert set(first.reset or ()) == {1, 2}
    for reading in iter(reader.look, None):
        assert reading.reset is None
        assert reader.total <= 2007
        if not reading.more:
            break
    assert reader.total == 2007


def test_restored_positions(main: Transcript, reader: Reader) -> None:
    """Another process reads on, and gives the same names to what it finds again."""
    main.response("m1", tokens=(1, 0, 0, 0))
    main.agent("a").response("m2", tokens=(20, 0, 0, 0))
    main.half("m3", tokens=(300, 0, 0, 0))
    reader.read()
    came = reader.came
    reader.restart()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert (reader.came, reading.reset) == (came, None)
    main.rest()
    main.response("m1", tokens=(2, 0, 0, 0))
    main.agent("b").response("m4", tokens=(4000, 0, 0, 0))
    reader.read()
    assert (reader.came, reader.total) == (came + 3, 4322)
    assert sorted(file.number for file in reader.files) == [1, 2, 3]


def test_going_back_to_what_was_kept(main: Transcript, reader: Reader) -> None:
    """A reading that could not be kept is given again."""
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    main.response("m2", tokens=(20, 0, 0, 0))
    lost = reader.source.read(SESSION)
    assert len(lost.copies) == 1
    reader.source.restore(SESSION, reader.files)
    reader.read()
    assert reader.total == 21


@pytest.mark.parametrize("restored", [False, True])
def test_forgotten_while_it_is_read(main: Transcript, reader: Reader, restored: bool) -> None:
    """What is forgotten or restored during a look is not brought back by the look's end."""
    main.response("m1", tokens=(1, 0, 0, 0))

    def interrupt(_frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and function is os.pread:
            sys.setprofile(None)
            reader.source.forget(SESSION)
            if restored:
                reader.source.restore(SESSION, ())

    sys.setprofile(interrupt)
    try:
        assert len(reader.source.read(SESSION).copies) == 1
    finally:
        sys.setprofile(None)
    assert reader.source.changed(SESSION)
    assert len(reader.source.read(SESSION).copies) == 1


# Where files are found


def test_every_place(claude: Path, main: Transcript, reader: Reader) -> None:
    """Any project, any depth below `subagents`; nothing else."""
    main.response("m1", tokens=(1, 0, 0, 0))
    elsewhere = Transcript(claude, SESSION, "-other-project")
    elsewhere.response("m2", tokens=(20, 0, 0, 0))
    elsewhere.agent("x", "deep", "deeper").response("m3", tokens=(300, 0, 0, 0))
    only_agents = Transcript(claude, SESSION, "-third-project")
    only_agents.agent("y").response("m4", tokens=(4000, 0, 0, 0))
    Transcript(claude, "another session").response("m5", tokens=(50_000, 0, 0, 0))
    for name in ("notes.jsonl", "agent-1.json", "agent.jsonl"):
        (main.subagents / "more").mkdir(parents=True, exist_ok=True)
        (main.subagents / "more" / name).write_bytes(encoded(assistant_line(SESSION, name, tokens=(7, 7, 7, 7))))
    reader.read()
    assert reader.total == 4321
    assert reader.agents == {"main-session": 21, "agent-x": 300, "agent-y": 4000}


@pytest.mark.parametrize("prepare", ["nothing", "claude", "projects", "project", "session", "subagents"])
def test_what_comes_later_is_noticed(claude: Path, main: Transcript, reader: Reader, prepare: str) -> None:
    """However little of the tree was there."""
    places = {
        "claude": claude,
        "projects": claude / "projects",
        "project": main.path.parent,
        "session": main.path.parent / SESSION,
        "subagents": main.subagents,
    }
    if prepare in places:
        places[prepare].mkdir(parents=True)
    reader.settle()
    writers = [main.agent("a"), main.agent("b", "deep"), main, main.agent("c", "deep")]
    for number, writer in enumerate(writers, start=1):
        assert not reader.source.changed(SESSION)
        writer.response(f"m{number}", tokens=(1, 0, 0, 0))
        assert reader.source.changed(SESSION)
        reader.settle()
        assert reader.total == number


def test_main_file_after_sub_agents_directory(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    main.subagents.parent.mkdir()
    reader.settle()
    main.agent("a").response("m2", tokens=(20, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 21


def test_a_directory_that_was_just_listed_is_listed_again(main: Transcript, reader: Reader) -> None:
    """Two files within one tick of the directory's clock: the second one is not overlooked."""
    main.response("m0")
    for number in range(200):
        main.agent(f"{number:03}a").response(f"a{number}", tokens=(1, 0, 0, 0))
        reader.read()
        main.agent(f"{number:03}b").response(f"b{number}", tokens=(1, 0, 0, 0))
        if reader.source.changed(SESSION):
            reader.read()
        assert reader.total == 2 * (number + 1)


@pytest.mark.parametrize("session", ["", ".", "..", "a/b", "../x", "a\0b", "\ud800", "x" * 250, "nobody's"])
def test_sessions_without_files(claude: Path, session: str) -> None:
    Transcript(claude, SESSION).response()
    (claude / "projects" / "x.jsonl").write_bytes(encoded(assistant_line(SESSION)))
    source = TranscriptSource(str(claude))
    for _ in range(2):
        reading = source.read(session)
        assert (reading.copies, reading.files, reading.status.state) == ((), (), "absent")
        assert reading.status.notes == ()


@pytest.mark.parametrize("raw", [b'it\'s "odd" *?[x]', b"\xff\xfe", "é\uef80".encode(), b"x" * 249])
def test_odd_session_ids(claude: Path, raw: bytes) -> None:
    """They are foreign bytes; what a shell would expand is not expanded."""
    writer = Transcript(claude, os.fsdecode(raw))
    reader = Reader(claude, fold(raw))
    writer.line(encoded(assistant_line("s", "m1", tokens=(1, 0, 0, 0))))
    writer.agent(os.fsdecode(b"\xfe")).line(encoded(assistant_line("s", "m2", tokens=(20, 0, 0, 0))))
    reader.read()
    assert reader.agents == {"main-session": 1, fold(b"agent-\xfe"): 20}
    paths = [file.path for file in reader.files]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(paths)) == paths
    reader.restart()
    writer.line(encoded(assistant_line("s", "m3", tokens=(300, 0, 0, 0))))
    assert reader.read().reset is None
    assert (reader.total, reader.came) == (321, 3)


def test_symbolic_links(claude: Path, main: Transcript, reader: Reader, tmp_path: Path) -> None:
    """A link to a file below the Claude directory counts, once; any other, and any link to a directory, does not."""
    main.response("m1", tokens=(1, 0, 0, 0))
    agent = main.agent("a")
    agent.response("m2", tokens=(20, 0, 0, 0))
    kept = claude / "kept" / "b"
    outside = tmp_path / "outside"
    for place, message, size in ((kept, "m3", 300), (outside / "agent-c.jsonl", "m4", 4000)):
        place.parent.mkdir()
        place.write_bytes(encoded(without_name(message, size)))
    for number in range(20):
        (main.subagents / f"agent-{number}.jsonl").symlink_to(agent.path)
    (main.subagents / "agent-b.jsonl").symlink_to(kept)
    (main.subagents / "agent-c.jsonl").symlink_to(outside / "agent-c.jsonl")
    (main.subagents / "agent-d.jsonl").symlink_to("agent-d.jsonl")
    (main.subagents / "agent-e.jsonl").symlink_to("nothing")
    (main.subagents / "dir").symlink_to(outside)
    (main.subagents / "loop").symlink_to(main.subagents)
    (claude / "projects" / "linked").symlink_to(main.path.parent)
    reading = reader.read()
    assert reader.agents == {"main-session": 1, "agent-a": 20, "agent-b": 300}
    assert reading.status.state == "ok"
    notes = " ".join(reading.status.notes)
    assert "agent-c.jsonl: leads outside the Claude directory" in notes
    assert "agent-d.jsonl: leads nowhere" in notes
    assert "agent-e.jsonl: leads nowhere" in notes
    with kept.open("ab") as file:
        file.write(encoded(without_name("m5", 1000)))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.total == 1321


def without_name(message: str, size: int) -> dict[str, Any]:
    return assistant_line(SESSION, message, tokens=(size, 0, 0, 0))


def test_claude_directory_behind_a_link(claude: Path, main: Transcript, tmp_path: Path) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    link = tmp_path / "link"
    link.symlink_to(claude)
    reader = Reader(link)
    reader.source.name(SESSION, str(link / "projects" / main.path.parent.name / main.path.name))
    reader.source.name(SESSION, str(main.path))
    reader.read()
    assert (reader.total, len(reader.files)) == (1, 1)


@pytest.mark.parametrize(("place", "total"), [("projects", 0), ("session", 1), ("subagents", 1)])
def test_directories_that_are_links_are_named(
    claude: Path, main: Transcript, reader: Reader, tmp_path: Path, place: str, total: int
) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    main.agent("a").response("m2", tokens=(20, 0, 0, 0))
    path = {"projects": claude / "projects", "session": main.subagents.parent, "subagents": main.subagents}[place]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    reading = reader.read()
    assert reader.total == total
    assert reading.status.notes == (f"{path}: a symbolic link to a directory, which is not followed",)


def test_a_link_that_leads_nowhere_and_goes(main: Transcript, reader: Reader) -> None:
    main.agent("a").response("m1", tokens=(1, 0, 0, 0))
    main.path.symlink_to(main.path.name)
    reader.settle()
    assert "leads nowhere" in " ".join(reader.read().status.notes)
    main.path.unlink()
    assert reader.source.changed(SESSION)
    assert reader.read().status.notes == ()


def test_positions_of_files_elsewhere(claude: Path, main: Transcript, reader: Reader, tmp_path: Path) -> None:
    """What was read below another Claude directory keeps what it gave, and is not read on."""
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    moved = Reader(tmp_path / "other")
    moved.source.restore(SESSION, reader.files)
    main.response("m2", tokens=(20, 0, 0, 0))
    reading = moved.read()
    assert (reading.copies, reading.files, reading.status.state) == ((), reader.files, "absent")
    Transcript(moved.claude, SESSION).response("m3", tokens=(300, 0, 0, 0))
    moved.settle()
    assert (moved.total, [file.number for file in moved.files]) == (300, [1, 2])


def test_too_deep(main: Transcript, reader: Reader) -> None:
    main.agent("in", *"abcdefghijklmnop").response("m1", tokens=(1, 0, 0, 0))
    main.agent("out", *"abcdefghijklmnopq").response("m2", tokens=(20, 0, 0, 0))
    reading = reader.read()
    assert reader.total == 1
    assert "deeper" in " ".join(reading.status.notes)


def test_too_many(main: Transcript, reader: Reader) -> None:
    """Those that were read before stay; what is left out is counted."""
    main.response("m0", tokens=(1, 0, 0, 0))
    main.subagents.mkdir(parents=True)
    for number in range(10_005):
        (main.subagents / f"agent-{number}.jsonl").write_bytes(b"")
    reading = reader.read()
    assert len(reading.files) == 10_000
    assert "6 are left out" in " ".join(reading.status.notes)
    reader.restart()
    reader.read()
    assert {file.path for file in reader.files} == {file.path for file in reading.files}


# The path that a hook gives


def test_named(claude: Path, reader: Reader) -> None:
    """A main file that nothing else would find, and its sub-agents; known again after a restart."""
    place = claude / "elsewhere" / "of another name.jsonl"
    reader.source.name(SESSION, str(place))
    reader.settle()
    writer = Transcript(claude, SESSION, path=place)
    writer.response("m1", tokens=(1, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    writer.agent("a").response("m2", tokens=(20, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-a": 20}
    reader.restart()
    writer.agent("b").response("m3", tokens=(300, 0, 0, 0))
    reader.read()
    assert reader.total == 321


def test_named_and_then_restored(claude: Path, reader: Reader) -> None:
    place = claude / "elsewhere" / "x.jsonl"
    reader.source.name(SESSION, str(place))
    reader.source.restore(SESSION, ())
    Transcript(claude, SESSION, path=place).response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    assert reader.total == 1


def test_naming_what_is_known_changes_nothing(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    reader.source.name(SESSION, str(main.path))
    assert not reader.source.changed(SESSION)
    reader.source.name(SESSION, str(main.path.with_name("other.jsonl")))
    assert reader.source.changed(SESSION)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd.jsonl", "leads outside"),
        ("{claude}/../x.jsonl", "leads outside"),
        ("{claude}/projects/../../outside/x.jsonl", "leads outside"),
        ("{claude}/link.jsonl", "leads outside"),
        ("{claude}/dir/x.jsonl", "leads outside"),
        ("{claude}x/y.jsonl", "leads outside"),
        ("projects/x.jsonl", "leads outside"),
        ("{claude}/projects/x.json", "is not a transcript"),
        ("{claude}", "is not a transcript"),
        ("", "is not a transcript"),
        ("{claude}/a\0.jsonl", "is not a path"),
    ],
)
def test_paths_that_are_refused(
    claude: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    claude.mkdir()
    (outside / "x.jsonl").write_bytes(encoded(assistant_line(SESSION)))
    (claude / "link.jsonl").symlink_to(outside / "x.jsonl")
    (claude / "dir").symlink_to(outside)
    monkeypatch.chdir(claude)
    source = TranscriptSource(str(claude))
    with pytest.raises(BadInputError, match=why):
        source.name(SESSION, path.replace("{claude}", str(claude)))
    assert source.read(SESSION).files == ()


# Agents


@pytest.mark.parametrize(
    ("raw", "agent"),
    [
        (b'{"agentType":"fd-quality","description":"looks"}', "fd-quality"),
        (b'{"agentType":"interflux:fd-quality"}', "fd-quality"),
        (b'{"agentType":"other:fd-quality"}', "other:fd-quality"),
        ('{"agentType":"qualité"}'.encode(), "qualité"),
        (b'{"agentType":""}', "agent-a"),
        (b'{"agentType":"interflux:"}', "agent-a"),
        (b'{"agentType":5}', "agent-a"),
        (b'{"agentType":"\xff"}', "agent-a"),
        (b'{"description":"looks"}', "agent-a"),
        (b'{"agentType":"fd-qual', "agent-a"),
        (b"[1]", "agent-a"),
        (b"", "agent-a"),
        (b"[" * 60_000, "agent-a"),
        (b'{"agentType":"x"}' + b" " * 65_536, "agent-a"),
        (None, "agent-a"),
    ],
)
def test_agents_names(main: Transcript, reader: Reader, raw: bytes | None, agent: str) -> None:
    writer = main.agent("a", "deep")
    if raw is not None:
        writer.meta(raw)
    writer.response(tokens=(1, 0, 0, 0))
    assert reader.read().status.state == "ok"
    assert reader.agents == {agent: 1}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_name_that_comes_later(main: Transcript, reader: Reader, restart: bool, broken: bool) -> None:
    """What the agent has given so far is given again, under its name; the other files are left alone."""
    writer = main.agent("a")
    main.response("m1", tokens=(1, 0, 0, 0))
    writer.response("m2", tokens=(20, 0, 0, 0))
    if broken:
        writer.meta(b'{"agentT')
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-a": 20}
    if restart:
        reader.restart()
    writer.meta(agentType="interflux:fd-safety")
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert set(reading.reset or ()) == {file.number for file in reader.files if file.agent == "fd-safety"}
    assert reader.agents == {"main-session": 1, "fd-safety": 20}
    reader.settle()
    # It keeps the name, whatever becomes of the companion.
    writer.meta(b"{")
    writer.response("m3", tokens=(300, 0, 0, 0))
    assert reader.read().reset is None
    writer.path.with_suffix(".meta.json").unlink()
    writer.response("m4", tokens=(4000, 0, 0, 0))
    assert reader.read().reset is None
    assert reader.agents == {"main-session": 1, "fd-safety": 4320}


def test_new_name_of_another_file(main: Transcript, reader: Reader) -> None:
    """Named anew and replaced at once: everything is read again."""
    one, two = main.agent("one"), main.agent("two")
    one.response("both", tokens=(100, 0, 0, 0))
    two.response("both", tokens=(90, 0, 0, 0))
    reader.settle()
    replaced(one)
    one.meta(agentType="fd-safety")
    assert set(reader.read().reset or ()) == {1, 2}
    assert reader.agents == {"fd-safety": 7, "agent-two": 90}


def test_what_is_no_companion(main: Transcript, reader: Reader) -> None:
    """A FIFO or a directory in its place is as good as none."""
    for name, make in (("a", os.mkfifo), ("b", os.mkdir)):
        writer = main.agent(name)
        writer.response(name, tokens=(1, 0, 0, 0))
        make(writer.path.with_suffix(".meta.json"))
    assert reader.read().status.state == "ok"
    assert reader.agents == {"agent-a": 1, "agent-b": 1}


# Files that cannot be read


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its path may be longer than a socket's may
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "why"),
    [(os.mkdir, "is a directory"), (os.mkfifo, "is not a regular file"), (make_socket, "is not a regular file")],
)
def test_something_else_in_a_files_place(
    main: Transcript, reader: Reader, make: Callable[[Path], None], why: str
) -> None:
    """It is named, and disturbs nobody; what takes its place is read."""
    main.response("m1", tokens=(1, 0, 0, 0))
    bad = main.agent("bad")
    main.agent("good").response("m2", tokens=(20, 0, 0, 0))
    make(bad.path)
    for _ in range(2):
        reading = reader.read()
        assert (reading.status.state, reader.total) == ("unreadable", 21)
        assert reading.status.detail == f"{bad.path}: {why}"
        assert reading.status.hint
        assert len(reading.files) == 2
    reader.settle()
    bad.path.rename(bad.path.with_suffix(".away"))
    bad.response("m3", tokens=(300, 0, 0, 0))
    assert reader.source.changed(SESSION)
    assert reader.read().status.state == "ok"
    assert reader.total == 321


def test_main_file_that_becomes_a_directory(main: Transcript, reader: Reader) -> None:
    main.response("m1", tokens=(1, 0, 0, 0))
    reader.settle()
    main.path.unlink()
    main.path.mkdir()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert (reading.status.state, reader.total, len(reading.files)) == ("unreadable", 1, 1)


def test_many_that_cannot_be_read(main: Transcript, reader: Reader) -> None:
    main.response("m1")
    for number in range(20):
        main.agent(f"{number:02}").path.mkdir(parents=True)
    status = reader.read().status
    assert status.detail.count("is a directory") == 5
    assert status.detail.endswith("and 15 more of the kind")


@pytest.mark.parametrize("place", ["", "projects"])
def test_a_file_in_a_directorys_place(claude: Path, reader: Reader, place: str) -> None:
    path = claude / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert reader.read().status.state in ("absent", "unreadable")


PERMISSIONS = """
import json, os, sys
from fluxbudgetd.sources.transcripts import TranscriptSource
claude, session, *places = sys.argv[1:]
source = TranscriptSource(claude)
def look(what):
    changed = source.changed(session)
    reading = source.read(session)
    print(json.dumps([what, changed, sum(copy.size for copy in reading.copies), reading.status.state,
                      reading.status.detail, reading.reset is None, len(reading.files)]))
look("")
for place in places:
    mode = os.stat(place).st_mode
    os.chmod(place, 0)
    look(place)
    look(place)
    os.chmod(place, mode)
    look("")
"""


def test_permissions(claude: Path, main: Transcript) -> None:
    """Whatever may not be read is named; it is read as soon as it may be."""
    main.response("m1", tokens=(1, 0, 0, 0))
    agent = main.agent("a", "deep")
    agent.response("m2", tokens=(20, 0, 0, 0))
    places = [agent.path, agent.path.parent, main.subagents, claude / "projects"]
    result = subprocess.run(
        [*OBEDIENT, sys.executable, "-c", PERMISSIONS, claude, SESSION, *places],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, *rest = [json.loads(line) for line in result.stdout.splitlines()]
    assert first == ["", True, 21, "ok", "", True, 2]
    for number, place in enumerate(places):
        denied, again, allowed = rest[3 * number : 3 * number + 3]
        assert denied[:4] == [str(place), True, 0, "unreadable"]
        assert f"{place}: Permission denied" in denied[4] or f"{agent.path}: Permission denied" in denied[4]
        assert again[2:] == denied[2:]
        assert allowed == ["", True, 0, "ok", "", True, 2]


REPLACED = """
import os, sys
from fluxbudgetd.sources.transcripts import TranscriptSource
claude, session, replaced, denied = sys.argv[1:]
source = TranscriptSource(claude)
source.read(session)
os.chmod(denied, 0)
os.truncate(replaced, 0)
reading = source.read(session)
left_out = [file.number for file in reading.files if file.path == denied]
assert set(reading.reset or ()) == {file.number for file in reading.files} - set(left_out), reading
assert not source.changed(session)
os.chmod(denied, 0o600)
reading = source.read(session)
assert (reading.status.state, reading.copies) == ("ok", ()), reading
"""


def test_what_cannot_be_read_again_keeps_what_it_gave(claude: Path, main: Transcript) -> None:
    """A file is replaced while another one may not be read."""
    writers = [main, main.agent("a"), main.agent("b")]
    for number, writer in enumerate(writers):
        writer.response(f"m{number}", tokens=(1, 0, 0, 0))
    time.sleep(0.06)  # so that the directories are old enough at the first look
    for place in writers[:2]:
        place.response("again")
        result = subprocess.run(
            [*OBEDIENT, sys.executable, "-c", REPLACED, claude, SESSION, place.path, writers[2].path],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert result.returncode == 0, result.stderr


# Where to watch


def test_directories_to_watch(claude: Path, main: Transcript, reader: Reader) -> None:
    """Each is there; together they are all in which the session's files may grow or come to be."""
    assert reader.source.paths(SESSION) == ()
    reader.read()
    assert reader.source.paths(SESSION) == ()
    other = claude / "projects" / "other"
    other.mkdir(parents=True)
    reader.read()
    assert set(reader.source.paths(SESSION)) == {str(claude / "projects"), str(other)}
    main.response()
    main.agent("a", "deep").response()
    reader.read()
    expected = {claude / "projects", main.path.parent, main.subagents.parent, main.subagents, main.subagents / "deep"}
    assert set(reader.source.paths(SESSION)) == {str(path) for path in expected}


# Everything at once


count = st.sampled_from((0, 1, 5, 70, 900, -5, None, "7", 2.5, True, 2**63))
response = st.fixed_dictionaries(
    {
        "message": st.sampled_from(("m1", "m2", "m3", "m4", None)),
        "request": st.sampled_from(("r1", "r2", None)),
        "sidechain": st.booleans(),
        "model": st.sampled_from(("claude-opus-4-6", "claude-haiku-4-5", "<synthetic>")),
        "at": st.sampled_from(("2026-02-20T17:05:55.000Z", "2026-02-20T17:05:56Z", "1970-01-01T00:00:00Z", "soon")),
        "text": st.text(max_size=20),
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
        b'{"type":"assistant","message":{"id":"m1","usage":{"input_tokens":5000}},"x":"\xff"}\n',
        b'{"type":"assistant","message":{"id":"m1","usage":{"input_tokens":5000}\n',
        b'["usage"]\n',
        b'{"type":"assistant","usage":' + b"[" * 5000 + b"]" * 5000 + b"}\n",
    )
)


def written(fields: dict[str, Any]) -> bytes:
    uuid = fields["uuid"]
    line = assistant_line(SESSION, **{name: value for name, value in fields.items() if name != "uuid"})
    return encoded(line | {"uuid": uuid}) if uuid else without(line, "uuid")


line = response.map(written) | foreign
any_file = st.integers(0, 2)
act = st.tuples(st.just("write"), any_file, st.integers(1, 700)) | st.tuples(
    st.sampled_from(("write", "look", "restart", "name", "cut", "replace")), any_file, st.just(100)
)


class Scene:
    """A session's writers, what they have yet to write, and the reader; each method is something that may happen."""

    def __init__(self, claude: Path, texts: Iterable[bytes]) -> None:
        main = Transcript(claude, SESSION)
        self.writers = [main, main.agent("a"), main.agent("b", "deep")]
        self.texts = list(texts)
        self.reader = Reader(claude)

    def write(self, which: int, length: int | None) -> None:
        text = self.texts[which]
        self.writers[which].line(text[:length])
        self.texts[which] = text[length:] if length is not None else b""

    def look(self, _which: int = 0, _length: int = 0) -> None:
        """Read, and compare with what is there."""
        reading = self.reader.read()
        assert reading.status.state in ("ok", "absent")
        assert self.reader.counted == self.reader.recounted()

    def restart(self, _which: int, _length: int) -> None:
        self.reader.restart()

    def name(self, which: int, _length: int) -> None:
        if which:
            self.writers[which].meta(agentType="fd-quality")

    def cut(self, which: int, length: int) -> None:
        self.look()
        path = self.writers[which].path
        if path.exists():
            os.truncate(path, max(0, path.stat().st_size - length))

    def replace(self, which: int, _length: int) -> None:
        self.look()
        if self.writers[which].path.exists():
            replaced(self.writers[which])


@settings(max_examples=150)
@given(texts=st.tuples(*[st.lists(line, max_size=12).map(b"".join)] * 3), acts=st.lists(act, max_size=60))
def test_totals_equal_a_recount(
    tmp_path_factory: pytest.TempPathFactory, texts: tuple[bytes, ...], acts: list[tuple[str, int, int]]
) -> None:
    """Whatever is written in whatever pieces, and whatever becomes of the files, at every look."""
    scene = Scene(tmp_path_factory.mktemp("claude"), texts)
    for what, which, length in acts:
        getattr(scene, what)(which, length)
    for which in range(3):
        scene.write(which, None)
    scene.look()


APPEND = """
import os, random, sys
generator = random.Random(int(sys.argv[1]))
files = []
for path in sys.argv[2:]:
    with open(path + ".text", "rb") as whole:
        files.append((os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), whole.read()))
while files:
    at = generator.randrange(len(files))
    fd, rest = files[at]
    length = generator.randrange(1, 3000)
    os.write(fd, rest[:length])
    files[at] = fd, rest[length:]
    if not files[at][1]:
        del files[at]
"""


def test_never_more_than_there_is(main: Transcript, reader: Reader) -> None:
    """Another process appends while it is read: no total on the way is larger than the last one."""
    writers = [main, main.agent("a"), main.agent("b", "deep")]
    for number, writer in enumerate(writers):
        writer.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            encoded(
                assistant_line(
                    SESSION,
                    f"m{number and 1}.{name}",
                    request=f"r{name % 3}" if name % 5 else None,
                    tokens=(part, 7 * part, 0, 30),
                    sidechain=bool(number),
                    text="t" * (name % 700),
                )
            )
            for name in range(2000)
            for part in (1, 20, 20)
        ]
        Path(f"{writer.path}.text").write_bytes(b"".join(lines))
    texts = [Path(f"{writer.path}.text").read_bytes() for writer in writers]
    final = sum(sum(one.tokens) for one in recount(dict(enumerate((text, "") for text in texts))))
    appending = subprocess.Popen([sys.executable, "-c", APPEND, "1", *(str(writer.path) for writer in writers)])
    looks = 0
    while (running := appending.poll() is None) or reader.source.changed(SESSION):
        if reader.source.changed(SESSION):
            before = reader.total
            reader.look()
            looks += 1
            assert before <= reader.total <= final
        assert appending.returncode in (None, 0), running
    assert looks > 1
    assert reader.total == final
    assert reader.counted == reader.recounted()
