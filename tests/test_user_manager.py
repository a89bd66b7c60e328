"""The service under a real user manager: each module in `jailed` runs in a jail of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import jail
from harness.daemon import killed, wait_for
from harness.privilege import needs_root

HERE = Path(__file__).parent
MODULES = sorted(path.name for path in (HERE / "jailed").glob("test_*.py"))

jailed = needs_root("make a jail", jail.why_not)


def environ() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "FLUXBUDGET_TESTED") if name in os.environ}
    # In CI, a test that is skipped in the jail counts as failed.
    return {**kept, "FLUXBUDGET_JAILED": "1", "CI": "true", "PYTHONDONTWRITEBYTECODE": "1"}


@jailed
@pytest.mark.parametrize("module", MODULES)
def test_module_passes_in_a_jail(module: str) -> None:
    result = jail.run(
        *(sys.executable, "-m", "pytest", "-q", "--color=no", "--durations=5"),
        *("-p", "no:cacheprovider", f"{HERE}/jailed/{module}"),
        environ=environ(),
    )
    assert result.returncode == 0, result.stdout


def is_running(pid: int) -> bool:
    """True if a process exists and is not a zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


@jailed
def test_killed_jail_leaves_nothing() -> None:
    command = [sys.executable, jail.__file__, "sh", "-c", "sleep 600"]
    with killed(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})) as owner:
        group = jail.control_group(owner.pid)
        managers = group / "user.slice"
        wait_for(lambda: [file for file in managers.rglob("cgroup.procs") if file.read_text()], "the jail")
        processes = [int(pid) for file in group.rglob("cgroup.procs") for pid in file.read_text().split()]
        assert len(processes) >= 4
    wait_for(lambda: not group.exists(), "the jail to end")
    assert [pid for pid in processes if is_running(pid)] == []


@jailed
def test_jail_has_an_ordinary_user() -> None:
    """The user is not root or uid 65534, and has a home directory, a running manager and a session bus."""
    script = (
        "id -u; pwd -P; touch ~/file /tmp/file; ls ~; systemctl --user is-system-running; test -S /run/user/4711/bus"
    )
    result = jail.run("sh", "-c", script)
    assert (result.stdout.split(), result.returncode) == (["4711", str(Path.cwd()), "file", "running"], 0)
    assert not Path("/tmp/file").exists()  # noqa: S108  the subject of this test
