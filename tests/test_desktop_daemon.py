"""A real daemon's warnings as bubbles, on a real bus with a real notification server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bus import PrivateBus, private_bus
from harness.daemon import Daemon, Home, project_of, started, wait_for
from harness.events import channels, wait_until_delivered
from harness.interstat import Interstat


@pytest.fixture
def bus(home: Home, tmp_path: Path) -> Iterator[PrivateBus]:
    """A session bus where the daemon looks for one: in its runtime directory."""
    place = tmp_path / "bus-of-this-test"
    place.mkdir()
    with private_bus(place) as made:
        runtime = home.root / "run"
        runtime.mkdir(exist_ok=True)
        (runtime / "bus").symlink_to(made.socket)
        yield made


def test_each_passed_threshold_shows_one_bubble(home: Home, interstat: Interstat, bus: PrivateBus) -> None:
    """More usage shows nothing. After the budget is raised, the new bubble replaces the run's last one."""
    server = bus.serve()
    home.start()
    run = started(home, id="r1", session="s1", token_budget=1000, goal="the <parser>")
    other = started(home, id="r2", session="s2", token_budget=1000)
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    wait_for(lambda: server.shown, "the bubble")
    for _ in range(100):
        interstat.insert("s1", input_tokens=1, output_tokens=0)
    assert home.spend(run).spent == 910
    wait_until_delivered(home)
    (first,) = server.shown
    assert (first["app_name"], first["urgency"], first["replaces_id"]) == ("fluxbudget", 1, 0)
    assert first["summary"] == "fluxbudget: 80 % of the budget spent"
    assert "r1: the &lt;parser&gt;" in first["body"]
    assert "810 of 1 000 billing tokens (81 %), 190 left, phase brainstorm" in first["body"]

    home.ok("run", "set", "--run", run, "--budget", "2000")
    interstat.insert("s1", input_tokens=700, output_tokens=0)
    interstat.insert("s2", input_tokens=1000, output_tokens=0)
    wait_for(lambda: len(server.shown) >= 3, "a bubble for each run")
    wait_until_delivered(home)
    by_run = {bubble["body"].split()[0].rstrip(":"): bubble for bubble in server.shown[1:]}
    assert set(by_run) == {"r1", other}
    assert (by_run["r1"]["replaces_id"], by_run["r1"]["urgency"]) == (first["id"], 1)
    assert (by_run[other]["replaces_id"], by_run[other]["urgency"]) == (0, 2)
    assert by_run[other]["summary"] == "fluxbudget: budget exceeded"


def test_each_loosening_shows_a_bubble_of_its_own(home: Home, interstat: Interstat, bus: PrivateBus) -> None:
    """They replace neither each other nor the bubble of a threshold, and do not wait for one to be passed."""
    server = bus.serve()
    home.start()
    run = started(home, id="r1", session="s1", token_budget=1000, enforcement="hard")
    home.ok("run", "set", "--run", run, "--budget", "2000")
    home.ok("run", "set", "--run", run, "--budget", "none")
    wait_for(lambda: len(server.shown) == 2, "both bubbles")
    assert {bubble["summary"] for bubble in server.shown} == {"fluxbudget: limit loosened"}
    assert {(bubble["replaces_id"], bubble["urgency"]) for bubble in server.shown} == {(0, 2)}
    first, second = (bubble["body"] for bubble in server.shown)
    assert "budget raised from 1 000 to 2 000 billing tokens\nby python" in first
    assert "budget of 2 000 billing tokens removed" in second


def test_channel_without_a_bus_rests_and_logs_it_once(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    for number in range(3):
        started(home, session=f"s{number}", token_budget=1000, project=project_of(home, f"s{number}"))
        interstat.insert(f"s{number}", input_tokens=900, output_tokens=0)
        assert home.spend(home.json("status")["runs"][0]["run"]["id"]).spent == 900
    wait_for(lambda: channels(home)["desktop"].state == "resting", "the channel to rest")
    assert home.ctl("doctor").returncode == 0
    wait_for(lambda: channels(home)["command"].waiting == channels(home)["log"].waiting == 0, "the other channels")
    assert daemon.log.count('"there is no session bus"') == 1


def test_bubbles_wait_for_a_desktop_that_comes_later(home: Home, interstat: Interstat, bus: PrivateBus) -> None:
    """Once there is a notification server, the next event shows the latest bubble of each run."""
    home.start()
    started(home, id="r1", session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=850, output_tokens=0)
    wait_for(lambda: channels(home)["desktop"].state == "resting", "the channel to rest")
    server = bus.serve()
    started(home, id="r2", session="s2", token_budget=1000)
    wait_for(lambda: server.shown, "the bubble")
    wait_until_delivered(home)
    assert [bubble["body"].split()[0] for bubble in server.shown] == ["r1"]
