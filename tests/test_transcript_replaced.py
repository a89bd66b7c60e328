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
