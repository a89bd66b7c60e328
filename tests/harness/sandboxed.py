"""Clients in a sandbox without Unix sockets."""

import subprocess
from collections.abc import Mapping

import pytest

from harness.daemon import CTL, Home
from harness.sandbox import why_not

sandboxed = pytest.mark.skipif(bool(why_not()), reason=f"no sandbox here: {why_not()}")


def run_under(
    prefix: tuple[str, ...], home: Home, *arguments: str, environ: Mapping[str, str] | None = None, data: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command. On a busy machine, starting it may take longer than the usual limit of some verbs."""
    verb, *words = arguments
    if verb in ("remaining", "statusline", "hook") and "--timeout" not in words:
        words = ["--timeout", "20", *words]
    return subprocess.run(
        [*prefix, *CTL, verb, *words],
        env={**home.environ, **(environ or {})},
        cwd=home.project,
        input=data,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
