"""The harness's detector of blocking calls works."""

import subprocess
import sys
from pathlib import Path

import pytest

SNIPPET = """
import sys
sys.argv[1:] = ["--version"]
sys.path.insert(0, {tests!r})
from harness import watched_daemon
try:
    watched_daemon.watched()
except SystemExit:
    pass
import asyncio, sqlite3, time
async def block():
    {call}
asyncio.run(block())
"""


@pytest.mark.parametrize(
    "call", ["time.sleep(0.001)", "sqlite3.connect(':memory:').execute('SELECT 1')", "__import__('os').listdir('/')"]
)
def test_detector_finds_blocking_call(call: str) -> None:
    code = SNIPPET.format(tests=str(Path(__file__).parent), call=call)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "BlockingError" in result.stderr, result
