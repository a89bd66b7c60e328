"""Fixtures shared by many modules, and the rule that a skipped test fails in CI."""

import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import yaml

from fluxbudgetd.config import yaml_nodes
from harness import native
from harness.daemon import Daemon, Home
from harness.events import CommandProgram, configure
from harness.interstat import Interstat
from harness.transcript_reader import SESSION, Reader
from harness.transcripts import Transcript

# A deadline per example, or a limit on generating examples, would be an assertion about speed.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# A shell without job control starts its background jobs with SIGINT ignored, and the processes that the tests start
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: A soak test may start a hundred daemons, one after the other, which takes long on a busy machine.
SOAK_SECONDS = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give soak tests more time than others, and spread them over the first half of the run.

    Otherwise the last of them, alphabetically, would run alone at the end.
    """
    soak = [item for item in items if item.get_closest_marker("soak") is not None]
    others = [item for item in items if item.get_closest_marker("soak") is None]
    for item in soak:
        item.add_marker(pytest.mark.timeout(SOAK_SECONDS))
    if soak:
        step = len(others) // (2 * len(soak))
        spread = [
            each for number, item in enumerate(soak) for each in (item, *others[number * step : number * step + step])
        ]
        items[:] = [*spread, *others[len(soak) * step :]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail skipped tests in CI, where everything is installed."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which in CI is a failure: {report.longrepr}"
    return report


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory as pytest's own fixture does, but with a short name.

    A Unix socket's path has at most 107 bytes, and includes TMPDIR and the user's name, which may be long.
    """
    name = re.sub(r"\W", "_", request.node.name.removeprefix("test_"))
    return tmp_path_factory.mktemp(name[:8])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example of a test overwrites."""
    return tmp_path_factory.mktemp("scratch") / "file"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Yield a throw-away home; at the end, stop its daemons and require that none of them blocked its event loop."""
    made = Home(tmp_path)
    yield made
    made.stop_all()


@pytest.fixture
def interstat(home: Home) -> Iterator[Interstat]:
    """Yield a writer of interstat's database in that home. The database exists and is empty."""
    made = Interstat(home.interstat)
    yield made
    made.close()


@pytest.fixture
def daemon(home: Home, interstat: Interstat) -> Daemon:
    """Return a running daemon over an empty interstat database."""
    return home.start()


@pytest.fixture
def command(home: Home) -> CommandProgram:
    """Configure the command channel, and return the program that it runs."""
    made = CommandProgram(home)
    configure(home, argv=made.argv)
    return made


@pytest.fixture
def claude_dir(tmp_path: Path) -> Path:
    """Return the path of Claude's directory, which does not exist yet."""
    return tmp_path / "claude"


@pytest.fixture
def transcript(claude_dir: Path) -> Transcript:
    """Return the writer of a session's main transcript, which is empty."""
    return Transcript(claude_dir, SESSION)


@pytest.fixture
def reader(claude_dir: Path) -> Reader:
    """Return a reader of the same session's transcripts."""
    return Reader(claude_dir)


_NATIVE = [pytest.param("native", marks=pytest.mark.native)] if native.is_available() else []


@pytest.fixture(params=["python", *_NATIVE])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the test with each of the two clients of the hot verbs, which behave alike."""
    if request.param == "native":
        native.use(native.native_client(tmp_path_factory))
    yield request.param
    native.use(None)


@pytest.fixture(params=["C", "Python"] if yaml.__with_libyaml__ else ["Python"])
def yaml_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each of PyYAML's loaders, which give the same result; a build without libyaml has only one."""
    if request.param == "Python":
        monkeypatch.setattr(yaml_nodes, "LOADER", yaml.SafeLoader)
    return str(request.param)
