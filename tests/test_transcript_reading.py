"""A transcript is read on from where reading stopped, in bounded pieces."""

import os
import time
import tracemalloc
from pathlib import Path

from fluxbudgetd.sources.transcripts import stamps
from harness.daemon import wait_for
from harness.transcript_reader import MIB, SESSION, Reader, replaced
from harness.transcripts import Transcript, assistant_line, encoded


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
