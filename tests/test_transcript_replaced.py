"""Transcripts that are cut, replaced or deleted, and positions that are restored."""

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
        file.write(raw.replace(b'"input_tokens":100', b'"input_tokens":333'))


def emptied_and_written(writer: Transcript) -> None:
    writer.path.write_bytes(b"")
    writer.incomplete("new")


@pytest.mark.parametrize(
    "change",
    [cut, cut_and_regrown, cut_in_a_line, replaced, created_again, rewritten_in_place, emptied_and_written],
)
@pytest.mark.parametrize("restart", [False, True])
def test_changed_file_is_read_again_from_its_beginning(
    transcript: Transcript, reader: Reader, change: Callable[[Transcript], None], restart: bool
) -> None:
    """So are all the others: the copy of a response that is lost may have suppressed a copy in another file."""
    one, two = transcript.agent("one"), transcript.agent("two")
    transcript.response("m1", tokens=(1, 0, 0, 0))
    one.response("both", tokens=(100, 0, 0, 0))
    two.response("both", tokens=(90, 0, 0, 0))
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-one": 100}
    change(one)
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


def test_replacement_with_the_same_last_lines_is_read_again(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", tokens=(100, 0, 0, 0))
    transcript.response("m2", tokens=(1, 0, 0, 0))
    reader.settle()
    raw = transcript.path.read_bytes()
    other = transcript.path.with_suffix(".new")
    other.write_bytes(raw.replace(b'"input_tokens":100', b'"input_tokens":333'))
    other.replace(transcript.path)
    assert reader.read().reset is not None
    assert reader.total == 334


def test_deleted_file_still_counts(transcript: Transcript, reader: Reader) -> None:
    """It counts even if another file is replaced meanwhile. A file that reappears is read again."""
    one, two = transcript.agent("one"), transcript.agent("two")
    for writer, size in ((transcript, 1), (one, 10), (two, 100)):
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
    assert set(reading.reset or ()) == {numbers[str(transcript.path)], numbers[str(two.path)]}
    assert reader.agents == {"main-session": 1, "agent-one": 10, "agent-two": 7}
    one.response("m9", tokens=(9, 0, 0, 0))
    reader.settle()
    assert reader.agents == {"main-session": 1, "agent-one": 9, "agent-two": 7}
    assert {file.path: file.number for file in reader.files} == numbers


def test_session_without_files_is_absent_but_still_counts(transcript: Transcript, reader: Reader) -> None:
    assert reader.read().status.state == "absent"
    transcript.response(tokens=(5, 0, 0, 0))
    assert reader.read().status.state == "ok"
    transcript.path.unlink()
    reading = reader.read()
    assert (reading.status.state, reading.reset, reader.total) == ("absent", None, 5)
    assert SESSION in reading.status.detail
    assert "--claude-dir" in reading.status.hint
    (file,) = reading.files
    assert file.offset > 0


def test_reading_after_a_reset_is_bounded(transcript: Transcript, reader: Reader) -> None:
    """Copies that no longer count are reported at once; reading their replacements takes several readings."""
    big = transcript.agent("big")
    text = "x" * 10_000
    big.line(b"".join(encoded(assistant_line(SESSION, f"m{n}", tokens=(1, 0, 0, 0), text=text)) for n in range(2000)))
    transcript.response("m", tokens=(5000, 0, 0, 0))
    reader.settle()
    assert reader.total == 7000
    replaced(transcript)
    first = reader.read_once()
    assert first.more
    assert set(first.reset or ()) == {1, 2}
    for reading in iter(reader.read_once, None):
        assert reading.reset is None
        assert reader.total <= 2007
        if not reading.more:
            break
    assert reader.total == 2007


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
    assert (reader.received, reading.reset) == (received, None)
    transcript.rest()
    transcript.response("m1", tokens=(2, 0, 0, 0))
    transcript.agent("b").response("m4", tokens=(4000, 0, 0, 0))
    reader.read()
    assert (reader.received, reader.total) == (received + 3, 4322)
    assert sorted(file.number for file in reader.files) == [1, 2, 3]


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
