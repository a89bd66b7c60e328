"""Reading continues where it stopped, in bounded pieces."""

import os
import time
import tracemalloc
from pathlib import Path

from fluxbudgetd.sources.transcripts import stamps
from harness.daemon import wait_for
from harness.transcript_reader import MIB, SESSION, Reader, replaced
from harness.transcripts import Transcript, assistant_line, encoded


def test_reading_continues_after_the_last_complete_line(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    transcript.incomplete("m2", tokens=(20, 0, 0, 0))
    reader.read()
    assert reader.total == 1
    transcript.rest()
    assert reader.source.changed(SESSION)
    reader.read()
    assert reader.total == 21
    transcript.response("m2", tokens=(25, 0, 0, 0))
    reader.read()
    assert reader.total == 26
    assert reader.received == 3


def test_changed_is_true_only_after_a_change(transcript: Transcript, reader: Reader) -> None:
    """An incomplete line that was already read is not a change."""
    assert reader.source.changed(SESSION)
    reader.settle()
    transcript.response(tokens=(1, 0, 0, 0))
    assert reader.source.changed(SESSION)
    reader.settle()
    transcript.incomplete("m2")
    assert reader.source.changed(SESSION)
    reader.read()
    for _ in range(3):
        assert not reader.source.changed(SESSION)
    transcript.line(b"more of it")
    assert reader.source.changed(SESSION)
    reader.read()
    assert not reader.source.changed(SESSION)
    reader.source.forget(SESSION)
    assert reader.source.changed(SESSION)


def test_append_within_one_tick_of_the_clock_is_noticed(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m0")
    reader.settle()
    for number in range(1, 200):
        transcript.response(f"m{number}", tokens=(1, 0, 0, 0))
        assert reader.source.changed(SESSION)
        reader.read()
        assert not reader.source.changed(SESSION)
        assert reader.total == number


def test_directory_stamp_is_unsettled_just_after_a_change(tmp_path: Path) -> None:
    """It stays unsettled until another change would be certain to change the directory's time."""
    for number in range(20):
        (tmp_path / str(number)).touch()
        found = stamps.directory_stamp(str(tmp_path))
        age = time.time_ns() - tmp_path.stat().st_ctime_ns
        assert found == stamps.UNSETTLED or age >= 50_000_000
    wait_for(lambda: stamps.directory_stamp(str(tmp_path)) == stamps.stamp(str(tmp_path)), "the directory to settle")
    assert stamps.directory_stamp(str(tmp_path / "none")) == stamps.MISSING


def test_touched_file_is_not_read_again(transcript: Transcript, reader: Reader) -> None:
    transcript.response(tokens=(1, 0, 0, 0))
    reader.settle()
    received, files = reader.received, reader.files
    os.utime(transcript.path)
    reading = reader.read()
    assert (reader.received, reading.files, reading.reset) == (received, files, None)


def test_long_incomplete_line_that_is_replaced_is_read_again(transcript: Transcript, reader: Reader) -> None:
    """The part that was already searched for the end of the line is searched again if it has changed."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    offset = transcript.path.stat().st_size
    transcript.line(b"z" * MIB)
    reader.settle()
    os.truncate(transcript.path, offset + 5)
    transcript.line(b"\n")
    transcript.response("m2", tokens=(20, 0, 0, 0))
    transcript.line(b"y" * MIB)
    reader.read()
    assert reader.total == 21
    os.truncate(transcript.path, offset + 5)
    transcript.line(b"\n")
    reader.settle()
    replaced(transcript)
    reader.read()
    assert reader.total == 7


def test_rewritten_incomplete_line_is_read_again(transcript: Transcript, reader: Reader) -> None:
    """Nothing was counted from the file, and its bytes before the position are still the same."""
    transcript.line(b"z" * 2000)
    reader.settle()
    os.truncate(transcript.path, 0)
    transcript.response("new", tokens=(7, 0, 0, 0))
    transcript.line(b"z" * 2000)
    reader.read()
    assert reader.total == 7


def test_file_that_replaces_an_incomplete_line_is_read(transcript: Transcript, reader: Reader) -> None:
    """Nothing was counted from the file, and its bytes before the position are still the same."""
    transcript.line(b"z" * MIB)
    reader.settle()
    other = transcript.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line(SESSION, "new", tokens=(7, 0, 0, 0))) + b"z" * MIB)
    other.replace(transcript.path)
    reader.read()
    assert reader.total == 7


def test_one_reading_is_bounded(transcript: Transcript, reader: Reader) -> None:
    """A long history takes several readings, which never count more than there is."""
    text = "x" * 1000
    lines = [encoded(assistant_line(SESSION, f"m{n}", tokens=(1, 0, 0, 0), text=text)) for n in range(15_000)]
    transcript.line(b"".join(lines))
    agent = transcript.agent("a")
    agent.line(b"".join(lines[:9000]))
    readings = 0
    while True:
        before = sum(file.offset for file in reader.files)
        reading = reader.read_once()
        readings += 1
        assert sum(file.offset for file in reader.files) - before < 8 * MIB + 2000  # the last line may be incomplete
        assert reader.total <= 15_000
        if not reading.more:
            break
    assert reader.total == 15_000
    assert readings >= 3
    assert reader.counted == reader.recounted()


def test_reading_that_ends_with_a_file_continues_with_the_next(transcript: Transcript, reader: Reader) -> None:
    """The first file is exactly as long as one reading."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    transcript.line(b"\n" * (8 * MIB - transcript.path.stat().st_size))
    transcript.agent("a").response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    assert reader.total == 21
    replaced(transcript)
    transcript.line(b"\n" * (8 * MIB - transcript.path.stat().st_size))
    assert reader.read_once().more
    assert reader.source.changed(SESSION)
    assert not reader.read_once().more
    assert reader.total == 27


def test_lines_across_chunks_are_read(transcript: Transcript, reader: Reader) -> None:
    """The lines are shorter and longer than a chunk; one has the greatest length that is read at all."""
    for length in (1, 300 << 10, MIB, 5, 3 * MIB, 100, 8 * MIB - 1000, 7):
        transcript.response(f"m{length}", tokens=(length, 0, 0, 0), text="y" * length)
    reader.read()
    assert reader.counted == reader.recounted()
    assert len(reader.counted) == 8
    assert reader.files[0].skipped == 0


def long_line(path: Path, length: int) -> None:
    """Append a line with usage that is too long to read."""
    line = encoded(assistant_line(SESSION, "long", tokens=(999, 0, 0, 0), text="@"))
    head, tail = line.split(b"@")
    with path.open("ab") as file:
        file.write(head)
        for _ in range(length // MIB):
            file.write(b"z" * MIB)
        file.write(tail)


def test_very_long_line_is_skipped_in_little_memory(transcript: Transcript, reader: Reader) -> None:
    transcript.response("m1", tokens=(1, 0, 0, 0))
    long_line(transcript.path, 50 * MIB)
    transcript.response("m2", tokens=(2, 0, 0, 0))
    tracemalloc.start()
    try:
        reader.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * MIB
    assert reader.total == 3
    assert reader.files[0].skipped == 1


def test_very_long_line_that_is_still_growing_is_skipped_once(transcript: Transcript, reader: Reader) -> None:
    """It is counted as skipped when it ends, even after a restart."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    offset = transcript.path.stat().st_size
    transcript.line(b'{"usage"' + b"z" * 9 * MIB)
    reader.settle()
    assert (reader.files[0].offset, reader.files[0].skipped) == (offset, 0)
    transcript.line(b"z" * 5)
    reader.read()
    reader.restart()
    transcript.line(b"\n")
    transcript.response("m2", tokens=(2, 0, 0, 0))
    reader.read()
    assert (reader.total, reader.files[0].skipped) == (3, 1)
