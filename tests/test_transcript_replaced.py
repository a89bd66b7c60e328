"""Transcripts that are cut, replaced, moved or deleted, and positions that are restored."""

import os
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from harness.transcript_reader import SESSION, Reader, replaced
from harness.transcripts import Transcript, assistant_line, encoded


def cut(writer: Transcript) -> None:
    os.truncate(writer.path, 0)


def cut_and_regrown(writer: Transcript) -> None:
    size = writer.path.stat().st_size
    os.truncate(writer.path, 0)
    writer.response("new", tokens=(7, 0, 0, 0), text="n" * size)


def cut_in_a_line(writer: Transcript) -> None:
    os.truncate(writer.path, writer.path.stat().st_size - 3)


def created_again(writer: Transcript) -> None:
    writer.path.unlink()
    writer.response("new", tokens=(7, 0, 0, 0))


def rewritten_in_place(writer: Transcript) -> None:
    """Change the content, but not the inode or the size."""
    raw = writer.path.read_bytes()
    with writer.path.open("r+b") as file:
        file.write(raw.replace(b'"m2"', b'"n2"').replace(b'"input_tokens":100', b'"input_tokens":333'))


def emptied_and_written(writer: Transcript) -> None:
    writer.path.write_bytes(b"")
    writer.incomplete("new")


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (cut, 0),
        (cut_and_regrown, 7),
        (cut_in_a_line, 0),
        (replaced, 7),
        (created_again, 7),
        (rewritten_in_place, 333),
        (emptied_and_written, 0),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_what_was_read_from_a_changed_file_stays(
    transcript: Transcript, reader: Reader, change: Callable[[Transcript], None], more: int, restart: bool
) -> None:
    """The file at its path is read from its beginning, under another number. Other files are not read again."""
    one = transcript.agent("one")
    transcript.response("m1", tokens=(1, 0, 0, 0))
    one.response("m2", request="r", tokens=(100, 0, 0, 0))
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-one": 100}
    change(one)
    if restart:
        reader.restart()
    received = reader.received
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert reader.agents == {"main-session": 1, "agent-one": 100 + more}
    assert reader.received == received + (more > 0)
    assert [(file.number, file.path, file.is_gone) for file in reading.files] == [
        (1, str(transcript.path), False),
        (2, str(one.path), True),
        (3, str(one.path), False),
    ]
    assert reading.kept == {2}
    if restart:
        reader.restart()
    one.response("m3", tokens=(1000, 0, 0, 0)) if change is not emptied_and_written else one.rest()
    assert reader.read().kept == {2}
    assert len(reader.files) == 3


def test_rewritten_file_gives_its_old_responses_once(transcript: Transcript, reader: Reader) -> None:
    """A response that is found again is a copy; what was cut off still counts."""
    for number in range(4):
        transcript.response(f"m{number}", request=f"r{number}", tokens=(10**number, 0, 0, 0))
    reader.settle()
    lines = transcript.path.read_bytes().splitlines(keepends=True)
    transcript.path.write_bytes(b"".join(lines[1:3]))
    transcript.response("m4", request="r4", tokens=(10_000, 0, 0, 0))
    reader.read()
    assert reader.total == 11_111
    assert [response.file for response in reader.responses] == [1, 2, 2, 1, 2]


def test_replacement_with_the_same_last_lines_is_read_again(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", request="r1", tokens=(100, 0, 0, 0))
    transcript.response("m2", request="r2", tokens=(1, 0, 0, 0))
    reader.settle()
    raw = transcript.path.read_bytes()
    other = transcript.path.with_suffix(".new")
    other.write_bytes(raw.replace(b'"input_tokens":100', b'"input_tokens":333'))
    other.replace(transcript.path)
    assert reader.read().kept == {1}
    assert reader.total == 334


def test_file_that_is_replaced_again_and_again(transcript: Transcript, reader: Reader) -> None:
    """A replacement from which nothing was read leaves no trace."""
    for number in range(1, 6):
        transcript.response(f"m{number}", tokens=(10, 0, 0, 0))
        reader.read()
        os.truncate(transcript.path, 0)
        reader.read()
        transcript.incomplete("lost")
        reader.read()
        os.truncate(transcript.path, 0)
        assert reader.read().kept == set(range(1, number + 1))
    assert reader.total == 50
    assert [file.number for file in reader.files] == [1, 2, 3, 4, 5, 6]


def test_deleted_file_still_counts(transcript: Transcript, reader: Reader) -> None:
    """A file that reappears is another one."""
    one, two = transcript.agent("one"), transcript.agent("two")
    for writer, size in ((transcript, 1), (one, 10), (two, 100)):
        writer.response(f"m{size}", tokens=(size, 0, 0, 0))
    reader.settle()
    numbers = {file.path: file.number for file in reader.files}
    one.path.unlink()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert (reading.kept, reader.total) == (frozenset({numbers[str(one.path)]}), 111)
    assert reading.status.state == "ok"
    assert not any(file.is_gone for file in reading.files)
    reader.restart()
    assert reader.read().kept == {numbers[str(one.path)]}
    replaced(two)
    assert reader.read().kept == {numbers[str(one.path)], numbers[str(two.path)]}
    assert reader.agents == {"main-session": 1, "agent-one": 10, "agent-two": 107}
    one.response("m9", tokens=(9, 0, 0, 0))
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-one": 19, "agent-two": 107}
    assert len(reader.files) == 5


def test_moved_file_is_read_on(transcript: Transcript, reader: Reader) -> None:
    """A file that only has another path is the same file; what comes after it in the old place is not."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    transcript.agent("one").response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    before = transcript.path
    moved = Transcript(reader.claude_dir, SESSION, "-home-me-elsewhere")
    moved.path.parent.mkdir()
    transcript.path.rename(moved.path)
    moved.response("m3", tokens=(300, 0, 0, 0))
    reader.settle()
    assert (reader.received, reader.total) == (3, 321)
    assert {file.number: file.path for file in reader.files}[1] == str(moved.path)
    before.write_bytes(encoded(assistant_line(SESSION, "m4", tokens=(4000, 0, 0, 0))))
    reader.settle()
    assert (reader.received, reader.total, len(reader.files)) == (4, 4321, 3)


def test_session_without_files_is_absent_but_still_counts(transcript: Transcript, reader: Reader) -> None:
    assert reader.read().status.state == "absent"
    transcript.response(tokens=(5, 0, 0, 0))
    assert reader.read().status.state == "ok"
    transcript.path.unlink()
    reading = reader.read()
    assert (reading.kept, reader.total) == (frozenset({1}), 5)
    assert reading.status.state == "absent"
    assert SESSION in reading.status.detail
    assert "--claude-dir" in reading.status.hint
    (file,) = reading.files
    assert file.offset > 0


def test_restored_reader_continues(transcript: Transcript, reader: Reader) -> None:
    """Another process continues at the position and gives the same responses the same names."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    transcript.agent("a").response("m2", tokens=(20, 0, 0, 0))
    transcript.incomplete("m3", tokens=(300, 0, 0, 0))
    reader.read()
    received = reader.received
    reader.restart()
    assert reader.source.changed(SESSION)
    reading = reader.read()
    assert (reader.received, reading.kept) == (received, frozenset())
    transcript.rest()
    transcript.response("m1", tokens=(2, 0, 0, 0))
    transcript.agent("b").response("m4", tokens=(4000, 0, 0, 0))
    reader.read()
    assert (reader.received, reader.total) == (received + 3, 4322)
    assert sorted(file.number for file in reader.files) == [1, 2, 3]


@pytest.mark.parametrize("restart", [False, True])
def test_time_goes_on_where_it_was(transcript: Transcript, reader: Reader, restart: bool) -> None:
    """A line's time is never earlier than that of a line before it in the same file."""
    transcript.response("m1", at="2026-02-20T17:05:55Z")
    reader.read()
    if restart:
        reader.restart()
    transcript.response("m2", at="2026-02-20T17:00:00Z")
    transcript.agent("a").response("m3", at="2026-02-20T17:00:00Z")
    reader.read()
    first, second, other = (response.at for response in reader.responses)
    assert first == second == reader.files[0].latest
    assert other == 1771606800000000


def test_reading_that_was_not_kept_is_repeated(transcript: Transcript, reader: Reader) -> None:
    """Restoring the saved positions makes the reader repeat it."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    reader.read()
    transcript.response("m2", tokens=(20, 0, 0, 0))
    lost = reader.source.read(SESSION)
    assert len(lost.copies) == 1
    reader.source.restore(SESSION, reader.files)
    reader.read()
    assert reader.total == 21


@pytest.mark.parametrize("restored", [False, True])
def test_session_forgotten_during_a_read_stays_forgotten(
    transcript: Transcript, reader: Reader, restored: bool
) -> None:
    """The end of the read does not bring it back."""
    transcript.response("m1", tokens=(1, 0, 0, 0))

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


def test_new_file_with_the_inode_of_a_deleted_one_is_another_file(transcript: Transcript, reader: Reader) -> None:
    """File systems reuse inodes at once. A file that moves keeps its name."""
    old, new = transcript.agent("a"), transcript.agent("b")
    old.response("m1", tokens=(5, 0, 0, 0))
    reader.read()
    old.path.rename(new.path)
    new.path.write_bytes(encoded(assistant_line(SESSION, "m2", tokens=(7, 0, 0, 0))))
    reader.read()
    assert reader.agents == {"agent-a": 5, "agent-b": 7}
