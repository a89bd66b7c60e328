"""Reading continues where it stopped, in bounded pieces."""

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from fluxbudgetd.sources import stamps
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
    assert (reader.received, reading.files) == (received, files)


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
    assert reader.total == 28


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


def test_reading_that_ends_with_a_file_continues_with_the_next(transcript: Transcript, reader: Reader) -> None:
    """The first file is exactly as long as one reading."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    transcript.line(b"\n" * (8 * MIB - transcript.path.stat().st_size))
    transcript.agent("a").response("m2", tokens=(20, 0, 0, 0))
    reader.settle()
    assert reader.total == 21
    replaced(transcript)
    transcript.line(b"\n" * (8 * MIB - transcript.path.stat().st_size))
    transcript.agent("a").response("m3", tokens=(300, 0, 0, 0))
    assert reader.read_once().more
    assert reader.source.changed(SESSION)
    assert not reader.read_once().more
    assert reader.total == 328


def test_lines_across_chunks_are_read(transcript: Transcript, reader: Reader) -> None:
    """The lines are shorter and longer than a chunk; one has the greatest length that is read at all."""
    lengths = (1, 300 << 10, MIB, 5, 3 * MIB, 100, 8 * MIB - 1000, 7)
    for length in lengths:
        transcript.response(f"m{length}", request=f"r{length}", tokens=(length, 0, 0, 0), text="y" * length)
    reader.read()
    assert [response.input for response in reader.responses] == list(lengths)
    assert reader.files[0].skipped == 0


def long_line(path: Path, length: int, *, kind: str = "assistant") -> None:
    """Append a line that is too long to read; an assistant's has usage at its end."""
    line = assistant_line(SESSION, "long", tokens=(999, 0, 0, 0), text="@")
    if kind != "assistant":
        line = {"type": kind, "message": {"content": "@"}}
    head, tail = encoded(line).split(b"@")
    with path.open("ab") as file:
        file.write(head)
        for _ in range(length // MIB):
            file.write(b"z" * MIB)
        file.write(tail)


@pytest.mark.parametrize(("kind", "skipped"), [("assistant", 1), ("user", 0)])
def test_very_long_line_is_searched_in_little_memory(
    transcript: Transcript, reader: Reader, kind: str, skipped: int
) -> None:
    """It is counted as unread if it has usage."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    long_line(transcript.path, 50 * MIB, kind=kind)
    transcript.response("m2", tokens=(2, 0, 0, 0))
    tracemalloc.start()
    try:
        reader.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * MIB
    assert reader.total == 3
    assert reader.files[0].skipped == skipped


@pytest.mark.parametrize("usage", [b'"usage"', b"usage"])
@pytest.mark.parametrize("restart", [False, True])
def test_very_long_line_that_is_still_growing_is_counted_once(
    transcript: Transcript, reader: Reader, restart: bool, usage: bytes
) -> None:
    """It is counted when it ends, wherever its usage was."""
    transcript.response("m1", tokens=(1, 0, 0, 0))
    offset = transcript.path.stat().st_size
    transcript.line(b"{" + usage + b"z" * 9 * MIB)
    reader.settle()
    assert (reader.files[0].offset, reader.files[0].skipped) == (offset, 0)
    transcript.line(b"z" * 5)
    reader.read()
    if restart:
        reader.restart()
    transcript.line(b"}\n")
    transcript.response("m2", tokens=(2, 0, 0, 0))
    long_line(transcript.path, 9 * MIB, kind="user")
    reader.read()
    assert (reader.total, reader.files[0].skipped) == (3, int(b'"' in usage))


def test_usage_of_a_very_long_line_is_found_at_any_place(transcript: Transcript, reader: Reader) -> None:
    """It is found if it begins in one chunk or reading and ends in the next, too."""
    for number, beginning in enumerate((256 << 10, 8 * MIB), 1):
        size = transcript.path.stat().st_size if transcript.path.exists() else 0
        transcript.line(b"z" * (-size % (256 << 10) + beginning - 4) + b'"usage"' + b"z" * 9 * MIB + b"\n")
        reader.read()
        assert reader.files[0].skipped == number


def test_very_long_line_is_found_across_chunks_byte_by_byte(transcript: Transcript, reader: Reader) -> None:
    """Each byte of the usage arrives alone."""
    transcript.line(b"z" * 9 * MIB)
    for byte in b'"usage"':
        reader.read()
        transcript.line(bytes([byte]))
    reader.read()
    transcript.line(b"\n")
    reader.read()
    assert reader.files[0].skipped == 1


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


def test_growing_total_never_falls_or_exceeds_the_final_one(transcript: Transcript, reader: Reader) -> None:
    """This holds while another process appends partial and complete copies, in two files the same ones."""
    writers = [transcript, transcript.agent("a"), transcript.agent("b", "deep")]
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
    final = 2 * 2000 * (20 + 7 * 20 + 30)
    appending = subprocess.Popen([sys.executable, "-c", APPEND, "1", *(str(writer.path) for writer in writers)])
    readings = 0
    while (running := appending.poll() is None) or reader.source.changed(SESSION):
        if reader.source.changed(SESSION):
            before = reader.total
            reader.read_once()
            readings += 1
            assert before <= reader.total <= final
        assert appending.returncode in (None, 0), running
    assert readings > 1
    assert reader.total == final
