"""`service install --sprints` with a real user manager: what the drop-in opens, and how it is updated and removed."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetctl.service import sprints
from harness.daemon import wait_for
from harness.installed import Installed, systemctl, unit_directory
from harness.intercore import IcProject
from harness.transcripts import Transcript

DROP_IN = unit_directory() / sprints.DIRECTORY / sprints.NAME


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    made = Installed(Path.home() / tmp_path.name / "an environment")
    yield made
    made.clean()


def project(installed: Installed, name: str, *kinds: str) -> Path:
    """Make a project below `work` that has `.clavain`, `.beads` or both."""
    place = installed.root.parent / "work 100%" / name
    for kind in kinds:
        (place / kind).mkdir(parents=True)
    return place


def writable(installed: Installed, *places: Path) -> list[bool]:
    """Return the places that the daemon's sandbox lets it write to, according to the kernel's mounts for the daemon."""
    pid = int(json.loads(installed.ok("ping", "--json", "--timeout", "30"))["pid"])
    lines = (line.split(" ") for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    mounts = {_unescaped(fields[4]): "rw" in fields[5].split(",") for fields in lines}
    nearest = [max((mount for mount in mounts if f"{place}/".startswith(f"{mount.rstrip('/')}/")), key=len)
               for place in places]  # fmt: skip
    return [mounts[mount] for mount in nearest]


def database(installed: Installed) -> dict[str, Any]:
    """Return what `doctor` says about the only database."""
    (found,) = json.loads(installed.ctl("doctor", "--json", "--timeout", "30").stdout)["daemon"]["databases"]
    return dict(found)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def status(installed: Installed) -> dict[str, object] | None:
    found: dict[str, object] | None = json.loads(installed.ok("service", "status", "--json"))["sprints"]
    return found


def test_projects_are_opened_and_nothing_else(installed: Installed) -> None:
    """Only `.clavain` and `.beads` below the directory, not the projects' files."""
    one, two = project(installed, "one", ".clavain", "src"), project(installed, "two", ".clavain", ".beads")
    installed.ok("service", "install", "--now")
    assert writable(installed, one / ".clavain", two / ".beads") == [False, False]
    assert status(installed) is None
    said = installed.ok("service", "install", "--sprints", str(one.parent))
    assert f"wrote {DROP_IN}" in said
    assert "the daemon was restarted" in said
    places = (one / ".clavain", two / ".clavain", two / ".beads", one, one / "src", two, one.parent)
    assert writable(installed, *places) == [True, True, True, False, False, False, False]
    found = status(installed)
    assert found is not None
    assert found["directories"] == [str(one.parent)]
    assert "may write to 3 directories below" in installed.ok("service", "status")
    assert json.loads(installed.ctl("doctor", "--json").stdout)["service"]["drop_ins"] == []


def test_runs_are_written_back_once_their_project_is_open(installed: Installed) -> None:
    """Without the drop-in, intercore's database is followed, but cannot be written, and `doctor` has the command."""
    intercore = IcProject(project(installed, "one", "src"))
    installed.ok("service", "install", "--now")
    run = intercore.run_create(budget=1000)
    intercore.claim("s1", run)
    Transcript(Path.home() / ".claude", "s1").response("m1", tokens=(100, 20, 0, 0))
    show = "run", "show", "--run", run, "--timeout", "30"
    wait_for(lambda: installed.ctl_in(intercore.root, *show).returncode == 0, "the run to be adopted")
    wait_for(lambda: database(installed)["write_state"] == "read-only", "the reason why nothing is written")
    command = f"fluxbudgetctl service install --sprints {intercore.root}"
    assert command in installed.ctl("doctor", "--timeout", "30").stdout
    assert intercore.rows("dispatches") == []
    assert installed.ok("remaining", "--run", run, "--timeout", "30") == "880"
    installed.ok("service", "install", "--sprints", str(intercore.root))
    wait_for(lambda: database(installed)["write_state"] == "ok", "the run to be written back")
    assert [(row["id"], row["input_tokens"]) for row in intercore.rows("dispatches")] == [(f"fluxbudget-{run}", 100)]
    assert command not in installed.ctl("doctor", "--timeout", "30").stdout


def test_next_install_finds_new_projects(installed: Installed) -> None:
    """Further directories are added to the earlier ones; an upgrade keeps them."""
    one = project(installed, "one", ".clavain")
    other = project(installed, "../other", ".clavain").resolve()
    installed.ok("service", "install", "--now", "--sprints", str(one.parent))
    two = project(installed, "two", ".beads")
    assert writable(installed, one / ".clavain", two / ".beads") == [True, False]
    installed.ok("service", "install")
    assert writable(installed, one / ".clavain", two / ".beads", other / ".clavain") == [True, True, False]
    installed.ok("service", "install", "--sprints", str(other))
    assert writable(installed, one / ".clavain", two / ".beads", other / ".clavain") == [True, True, True]


def test_daemon_gets_the_path_of_bd(installed: Installed) -> None:
    one = project(installed, "one", ".beads")
    tools = installed.root.parent / "tools"
    tools.mkdir()
    (tools / "bd").write_text("#!/bin/sh\n")
    (tools / "bd").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    installed.ok("service", "install", "--now", "--sprints", str(one), PATH=path)
    pid = int(json.loads(installed.ok("ping", "--json", "--timeout", "30"))["pid"])
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (found,) = (value for value in environ if value.startswith(b"PATH="))
    assert found.startswith(os.fsencode(f"PATH={tools}:"))
    assert b"/usr/bin" in found


def test_sprints_are_closed_again(installed: Installed) -> None:
    one = project(installed, "one", ".clavain")
    installed.ok("service", "install", "--now", "--sprints", str(one))
    assert f"removed {DROP_IN}" in installed.ok("service", "install", "--no-sprints")
    assert not DROP_IN.exists()
    assert writable(installed, one / ".clavain") == [False]


def test_uninstall_removes_the_drop_in(installed: Installed) -> None:
    """But not the user's own settings beside it."""
    one = project(installed, "one", ".clavain")
    installed.ok("service", "install", "--now", "--sprints", str(one))
    assert f"removed {DROP_IN}" in installed.ok("service", "uninstall")
    assert not DROP_IN.parent.exists()
    installed.ok("service", "install", "--sprints", str(one))
    own = DROP_IN.with_name("override.conf")
    own.write_text("[Service]\nNice=1\n")
    assert f"your own settings stay: {own.parent}" in installed.ok("service", "uninstall")
    assert [path.name for path in own.parent.iterdir()] == ["override.conf"]


def test_edited_drop_in_is_kept(installed: Installed) -> None:
    """An upgrade leaves it alone; --sprints refuses without --force; uninstall names it."""
    one = project(installed, "one", ".clavain")
    installed.ok("service", "install", "--sprints", str(one))
    edited = DROP_IN.read_text() + "Nice=1\n"
    DROP_IN.write_text(edited)
    installed.ok("service", "install")
    refused = installed.ctl("service", "install", "--sprints", str(one))
    assert (refused.returncode, DROP_IN.read_text()) == (1, edited)
    assert "was edited by hand; nothing was written" in refused.stderr
    assert "your own settings stay" in installed.ok("service", "uninstall")
    assert DROP_IN.read_text() == edited
    installed.ok("service", "install", "--force", "--sprints", str(one))
    assert "Nice" not in DROP_IN.read_text()


def test_units_are_correct(installed: Installed) -> None:
    """The drop-in causes no warnings of systemd, with beads and an odd name."""
    one = project(installed, 'it\'s "odd" $x \\ é', ".clavain", ".beads")
    installed.ok("service", "install", "--now", "--sprints", str(one))
    assert writable(installed, one / ".clavain") == [True]
    verified = systemctl("show", "--property=LoadState,DropInPaths,RestrictAddressFamilies", "fluxbudgetd.service")
    assert "LoadState=loaded" in verified
    assert str(DROP_IN) in verified
    assert "AF_UNIX" in verified
    assert "AF_INET" in verified
