"""A project with beads, and a stand-in for `bd` that can hang, fail, wait for its lock, and lie."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.scripts import install_python

# It keeps the beads in .beads/beads.json, and does what .beads/behaviour says.
_PROGRAM = r"""
import fcntl, json, os, subprocess, sys, time

place = os.path.join(os.getcwd(), ".beads")
def path(name):
    return os.path.join(place, name)

with open(path("calls"), "a") as log:
    given = [name for name in os.environ if name.startswith(("BD_", "BEADS_", "NOTIFY_", "LISTEN_", "WATCHDOG_"))]
    log.write(json.dumps({"words": sys.argv[1:], "pid": os.getpid(), "given": given}) + "\n")
how = open(path("behaviour")).read() if os.path.exists(path("behaviour")) else ""
if how == "hang":
    child = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(3600)"
    subprocess.Popen([sys.executable, "-IS", "-c", child, __file__])
    open(path("hanging"), "w").close()
    time.sleep(3600)
elif how == "fail":
    sys.exit("Error: the database is damaged")
elif how == "garbage":
    print("Issue: it is none of your business")
    sys.exit()
elif how == "flood":
    while True:
        print("x" * 65536)
elif how == "null":
    print(json.dumps({"issue_id": sys.argv[-1], "states": None}))
    sys.exit()

lock = open(path("lock"), "w")
fcntl.flock(lock, fcntl.LOCK_EX)  # waits for ever
beads = json.load(open(path("beads.json")))
words = [word for word in sys.argv[1:] if word not in ("--json", "--sandbox") and not word.startswith("--actor=")]
name = words[1] if words[0] == "update" else words[2]
if name not in beads:
    sys.exit('Error: resolving %s: no issue found matching "%s"' % (name, name))
if words[:2] == ["state", "list"]:
    states = {}
    for label in sorted(beads[name], reverse=True):
        dimension, _, value = label.partition(":")
        states[dimension] = value
    print(json.dumps({"issue_id": "another-1" if how == "lie" else name, "states": states}))
elif words[:2] == ["label", "list"]:
    print(json.dumps(beads[name] or None))
else:
    options = words[2:]
    for option, label in zip(options[::2], options[1::2]):
        if option == "--remove-label":
            beads[name].remove(label)
        elif option == "--add-label":
            beads[name].append(label)
        else:
            sys.exit("unknown flag: " + option)
    with open(path("new.json"), "w") as new:
        json.dump(beads, new)
    os.replace(path("new.json"), path("beads.json"))
"""


class BeadsProject:
    """A project with a `.beads` directory. `path` is the PATH on which `bd` is found."""

    def __init__(self, project: Path, bin_directory: Path) -> None:
        self.project = project
        self.place = project / ".beads"
        self.place.mkdir(parents=True, exist_ok=True)
        self.program = bin_directory / "bd"
        install_python(self.program, _PROGRAM, "-IS")
        self._write({})

    def put(self, name: str, *labels: str) -> None:
        """Replace the labels of a bead, or create it."""
        self._write({**self._beads, name: list(labels)})

    def labels(self, name: str) -> list[str]:
        """Return the labels of a bead."""
        return self._beads[name]

    def behave(self, how: str = "") -> None:
        """Make all further calls hang, fail, lie, flood, or print garbage or null; by default, work."""
        (self.place / "hanging").unlink(missing_ok=True)
        (self.place / "behaviour").write_text(how)

    @property
    def is_hanging(self) -> bool:
        """True if a call has begun to hang since `behave`."""
        return (self.place / "hanging").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that every call waits for."""
        with (self.place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Return every call so far: its words, its process, and the variables it should not have been given."""
        path = self.place / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commands(self) -> list[str]:
        """Return the words of every call so far."""
        return [" ".join(call["words"]) for call in self.calls]

    @property
    def processes(self) -> list[int]:
        """Return the processes that belong to calls, `timeout` included."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                is_guard = words[0].endswith(b"/timeout") and (process / "cwd").readlink() == self.project
                if is_guard or bytes(self.program) in words:
                    found.append(int(process.name))
        return found

    @property
    def _beads(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.place / "beads.json").read_text())
        return found

    def _write(self, beads: dict[str, list[str]]) -> None:
        new = self.place / "beads.new"
        new.write_text(json.dumps(beads))
        new.replace(self.place / "beads.json")
