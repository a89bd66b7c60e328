"""A running `fluxbudgetctl watch`."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, Self

from harness.daemon import CTL, Home, wait_for


class Watch:
    """A process of `fluxbudgetctl watch`, and its output so far."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*CTL, "watch", *arguments],
            env=home.environ,
            cwd=home.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.out = b""
        self.err = b""
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in ("out", "err")]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.end()

    def _read(self, name: str) -> None:
        stream = self.process.stdout if name == "out" else self.process.stderr
        assert stream is not None
        with stream:
            while data := os.read(stream.fileno(), 65536):
                setattr(self, name, getattr(self, name) + data)

    def printed(self) -> list[Any]:
        return [json.loads(line) for line in self.out.split(b"\n")[:-1]]

    def numbers(self) -> list[int]:
        return [line["seq"] for line in self.printed() if "data" in line]

    def wait_for_numbers(self, numbers: Sequence[int]) -> None:
        wait_for(lambda: len(self.numbers()) >= len(numbers), f"{len(numbers)} events")
        assert self.numbers() == list(numbers)

    def wait_for_stderr(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.err.decode().count(text) >= times, f"{text} ({times})")

    def end(self, number: signal.Signals | None = None) -> int:
        """Wait until it ends, after sending a signal if one is given; return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        for reader in self._readers:
            reader.join(timeout=60)
        return code
