"""flux-drive's budget files: merged key by key, with unknown keys ignored and malicious content harmless."""

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config import yaml_nodes
from fluxbudgetd.config.flux_drive import ReactionBudget, ReviewBudget, installed_budget_file, load_review_budget
from fluxbudgetd.config.locations import ClaudeDirectories
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.text import shown_path
from harness.configuration import CALIBRATION, IN_THE_WAY, anything, holds, wrong

MAX = 2**63 - 1


def project_file(project: Path) -> Path:
    path = project / ".claude" / "flux-drive-budget.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def load(tmp_path: Path, yaml_loader: str) -> Callable[[str | bytes], ReviewBudget]:
    """Return a function that writes a file and loads it as the plugin's."""

    def made(content: str | bytes) -> ReviewBudget:
        path = tmp_path / "budget.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_review_budget(str(path), None)

    return made


Load = Callable[[str | bytes], ReviewBudget]


def unfiled(review: ReviewBudget) -> ReviewBudget:
    return msgspec.structs.replace(review, files=())


def test_defaults() -> None:
    review = load_review_budget(None, None)
    assert review == ReviewBudget()
    assert (review.budgets["plan"], review.budgets["repo"], review.agent_defaults["oracle"]) == (
        150_000,
        300_000,
        80_000,
    )
    assert (review.slicing_multiplier, review.min_agents, review.enforcement) == (0.5, 2, "soft")
    assert review.exempt_agents == ("fd-safety", "fd-correctness")
    assert review.reaction_budget == ReactionBudget(fraction=0.25, min_agents=2)


def test_files_are_merged_key_by_key(tmp_path: Path) -> None:
    """Defaults, the plugin's file, the calibrated multiplier, the project's file: the later ones take precedence."""
    plugin = tmp_path / "budget.yaml"
    project = tmp_path / "project"
    plugin.write_text(
        "budgets: {plan: 1, spec: 2, own: 3}\nagent_defaults: {review: 4}\nslicing_multiplier: 0.9\nmin_agents: 5\n"
        "reaction_budget: {fraction: 0.5}\nexempt_agents: [a, interflux:b]\n"
    )
    review = load_review_budget(str(plugin), str(project), 0.7)
    assert (review.slicing_multiplier, review.files) == (0.7, (str(plugin),))
    theirs = project_file(project)
    theirs.write_text("budgets: {plan: 10}\nreaction_budget: {min_agents: 0}\nexempt_agents: []\nenforcement: hard\n")
    review = load_review_budget(str(plugin), str(project), 0.7)
    assert review == ReviewBudget(
        budgets={**ReviewBudget().budgets, "plan": 10, "spec": 2, "own": 3},
        agent_defaults={**ReviewBudget().agent_defaults, "review": 4},
        slicing_multiplier=0.7,
        min_agents=5,
        enforcement="hard",
        exempt_agents=(),
        reaction_budget=ReactionBudget(fraction=0.5, min_agents=0),
        files=(str(plugin), str(theirs)),
    )
    assert load_review_budget(str(plugin), None).exempt_agents == ("a", "b")
    theirs.write_text("slicing_multiplier: 1\n")
    assert load_review_budget(str(plugin), str(project), 0.7).slicing_multiplier == 1.0


@pytest.mark.parametrize(
    "content",
    [
        "", "# nothing\n", "~", "---\n", "budgets:\n", "budgets: ~\nexempt_agents: null\nmin_agents:\n",
        "budgets: {plan: ~}", "reaction_budget: {fraction: , min_agents: ~, other: x}", "{}",
        # Unknown keys are ignored, whatever their values are.
        "dispatch: {a: 2026-13-45}\ndropout: !custom [1]\nother: [[[{}]]]\nfiles: 5", "dispatch: !!int x",
        "1: 2\ntrue: 3\n? [a, b]\n: 4\n? {a: b}\n: 5\n2026-01-01: 6",
        "budgets: {x: text, y: -1, z: [1], t: true, f: 1.5, 1: 5, true: 6, ~: 7}", "agent_defaults: {x: 1e5}",
        "budgets: &b {other: 150000, again: *b}",
    ],
)  # fmt: skip
def test_file_without_known_keys(load: Load, content: str) -> None:
    assert unfiled(load(content)) == ReviewBudget()


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        ("budgets: {plan: 150_000}", "plan", 150_000),
        ("budgets: {plan: 1, plan: 2}", "plan", 2),
        (f"budgets: {{plan: {MAX}}}", "plan", MAX),
        ("budgets: {my own: 7}", "my own", 7),
        ("base: &base {plan: 5, spec: 6}\nbudgets: {<<: *base, spec: 7}", "plan", 5),
        ("base: &base {plan: 5, spec: 6}\nbudgets: {spec: 7, <<: *base}", "spec", 7),
        ("a: &a {plan: 1}\nb: &b {plan: 2}\nbudgets: {<<: [*a, *b]}", "plan", 1),
        ("a: &a {plan: 1}\nbudgets: &x {<<: [*a, *x]}", "plan", 1),
        ("a: &a {plan: 0x10}\nbudgets: *a", "plan", 16),
        ("<<: {budgets: {plan: 3}}", "plan", 3),
    ],
)
def test_budget_of_an_input_type(load: Load, content: str, name: str, expected: int) -> None:
    assert load(content).budgets[name] == expected


TOKENS = f"a whole number, 1 to {MAX}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("budgets: {plan: 0}", f"budgets.plan is 0; allowed: 1 to {MAX}"),
        (f"budgets: {{plan: {2**63}}}", f"budgets.plan is {2**63}; allowed: 1 to {MAX}"),
        ("budgets: {plan: 150000.0}", f"budgets.plan is 150000.0; allowed: {TOKENS}"),
        ("budgets: {plan: '150000'}", f'budgets.plan is "150000" (a string in YAML 1.1); allowed: {TOKENS}'),
        ("budgets: {plan: 1e5}", f'budgets.plan is "1e5" (a string in YAML 1.1); allowed: {TOKENS}'),
        ("budgets: {plan: true}", f"budgets.plan is true; allowed: {TOKENS}"),
        ("budgets: {plan: [1]}", f"budgets.plan is a list; allowed: {TOKENS}"),
        ("budgets: {plan: 2026-01-02}", f"budgets.plan is 2026-01-02 (!!timestamp); allowed: {TOKENS}"),
        ("budgets: {plan: 2026-13-45}", f"budgets.plan is 2026-13-45 (!!timestamp); allowed: {TOKENS}"),
        ("budgets: {plan: !!int x}", f"budgets.plan is x (!!int); allowed: {TOKENS}"),
        ("budgets: {plan: !own 3}", f"budgets.plan is 3 (!own); allowed: {TOKENS}"),
        ("budgets: &b {plan: *b}", f"budgets.plan is a map; allowed: {TOKENS}"),
        (f"budgets: {{plan: {'9' * 5000}}}", f"budgets.plan is {'9' * 59}…; allowed: {TOKENS}"),
        (f"budgets: {{plan: 1{':1' * 5000}}}", f"budgets.plan is {'1:' * 29}1…; allowed: {TOKENS}"),
        ("budgets: 5", "budgets is 5; allowed: a map"),
        ("budgets: [plan]", "budgets is a list; allowed: a map"),
        ("budgets: !!set {plan}", "budgets is a map with the tag !!set; allowed: a map"),
        ("agent_defaults: {review: -1}", f"agent_defaults.review is -1; allowed: 0 to {MAX}"),
        (
            "agent_defaults: {review: x}",
            f'agent_defaults.review is "x" (a string in YAML 1.1); allowed: a whole number, 0 to {MAX}',
        ),
        ("slicing_multiplier: 0", "slicing_multiplier is 0; allowed: a number, above 0, at most 10"),
        ("slicing_multiplier: .nan", "slicing_multiplier is nan; allowed: a number, above 0, at most 10"),
        ("slicing_multiplier: .inf", "slicing_multiplier is inf; allowed: a number, above 0, at most 10"),
        ("min_agents: 1001", "min_agents is 1001; allowed: 0 to 1000"),
        ("enforcement: on", 'enforcement is true; allowed: "hard", "soft"'),
        ("enforcement: firm", 'enforcement is "firm"; allowed: "hard", "soft"'),
        ("cost_basis: cache", 'cost_basis is "cache"; allowed: "billing", "total"'),
        ("exempt_agents: fd-x", 'exempt_agents is "fd-x"; allowed: a list of: text that is not empty'),
        ("exempt_agents: {a: 1}", "exempt_agents is a map; allowed: a list of: text that is not empty"),
        ("exempt_agents: [a, 1]", "exempt_agents[1] is 1; allowed: text that is not empty"),
        ("exempt_agents: [a, ~]", "exempt_agents[1] is null; allowed: text that is not empty"),
        ("exempt_agents: [[a]]", "exempt_agents[0] is a list; allowed: text that is not empty"),
        ("exempt_agents: ['interflux:']", 'exempt_agents[0] is ""; allowed: text that is not empty'),
        ("reaction_budget: {fraction: 1.5}", "reaction_budget.fraction is 1.5; allowed: a number, 0 to 1"),
        ("reaction_budget: {min_agents: -1}", "reaction_budget.min_agents is -1; allowed: 0 to 1000"),
        ("reaction_budget: 0.5", "reaction_budget is 0.5; allowed: a map with fraction, min_agents"),
        ("[1]", "line 1, column 1: the whole file is a list; allowed: a map"),
        ("\nfive", "line 2, column 1: the whole file is a single value; allowed: a map"),
        ("a: 1\nb: c: d", "line 2, column 5: mapping values are not allowed"),
        ("a: *b", "line 1, column 4: found undefined alias"),
        ("--- {}\n--- {}", "line 2, column 1: expected a single document"),
        ("a: b\n\x1b: d", "line 2: the character \\x1b cannot be in YAML"),
        (f"min_agents: &x [{'*x, ' * 9}]", "min_agents is a list; allowed: a whole number, 0 to 1000"),
        ("[" * 65, "line 1, column 65: nested deeper than 64 levels"),
        (b"a: b\nc: \xff", "line 2 has the byte 0xff; allowed: UTF-8"),
        ("a: !!python/object/apply:os.mkdir [x]", "line 1, column 4: the tag !!python/object/apply:os.mkdir; "),
        ("budgets:\n  !!python/name:os.x '': 1", "line 2, column 3: the tag !!python/name:os.x; allowed: "),
        ("!!python/tuple [1]", "line 1, column 1: the tag !!python/tuple; allowed: "),
        ("#" * ((1 << 20) + 1), "it is larger than 1 MiB; allowed: at most 1 MiB"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_error_message(tmp_path: Path, load: Load, yaml_loader: str, content: str | bytes, message: str) -> None:
    found = wrong(lambda: load(content), tmp_path / "budget.yaml")
    if yaml_loader == "Python" and "column" in message:  # it words syntax errors differently
        assert found.startswith(message.partition(",")[0])
    else:
        assert found.startswith(message) if message.startswith("line ") else found == message


def test_tags_execute_nothing(tmp_path: Path, load: Load) -> None:
    victim = tmp_path / "made"
    with pytest.raises(ConfigError):
        load(f"budgets: !!python/object/apply:os.mkdir [{victim}]")
    assert not victim.exists()


def test_lone_surrogate_is_refused(tmp_path: Path, load: Load) -> None:
    """One of PyYAML's loaders reports bad syntax; the other returns text that cannot be encoded."""
    wrong(lambda: load('exempt_agents: ["\\ud800"]'), tmp_path / "budget.yaml")


@pytest.mark.parametrize(("make", "message"), IN_THE_WAY)
def test_path_that_is_not_a_regular_file(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    plugin = tmp_path / "budget.yaml"
    make(plugin)
    assert wrong(lambda: load_review_budget(str(plugin), None), plugin) == message
    theirs = project_file(tmp_path / "project")
    make(theirs)
    assert wrong(lambda: load_review_budget(None, str(tmp_path / "project")), theirs) == message


def test_absent_files_give_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".claude").touch()
    for project in ("none", "file", "other"):
        assert load_review_budget(str(tmp_path / "none.yaml"), str(tmp_path / project)) == ReviewBudget()


def test_project_whose_path_is_not_utf_8(tmp_path: Path) -> None:
    """A run stores the path as text, but the file is found by the original bytes."""
    project = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    project_file(project).write_text("min_agents: 7\n")
    review = load_review_budget(None, shown_path(str(project)))
    assert review.min_agents == 7
    assert review.files == (shown_path(str(project_file(project))),)


YAML_PIECES = [
    "budgets", "plan", ": ", ":", "{", "}", "[", "]", ", ", "- ", "\n", "  ", "&a ", "*a", "<<", "!!int ", "!!float ",
    "!!python/x ", "!!binary ", "!!timestamp ", "!!set ", "!!omap ", "!!bool ", "!x ", "1", "0b", "0x", "010", "1:60",
    "1e5", "1.5", ".nan", "~", "=", "true", "'", '"', "\\ud800", "|\n", ">", "#", "---\n", "...", "%YAML 9\n", "? ",
    "2026-13-45", "exempt_agents", "reaction_budget", "fraction", "enforcement", "\x00", "\ufeff", "\x85", "\t",
    "9" * 5000,
]  # fmt: skip


@given(content=anything(YAML_PIECES), pure=st.booleans())
def test_any_bytes_are_a_review_budget_or_an_error(scratch: Path, content: bytes, pure: bool) -> None:
    scratch.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        if pure:
            patch.setattr(yaml_nodes, "LOADER", yaml.SafeLoader)
        assert holds(lambda: load_review_budget(str(scratch), None), ReviewBudget)


# --- where the installed plugin's file is


def installed(root: Path) -> str:
    path = root / "config" / "flux-drive" / "budget.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return str(path)


def recorded(claude_dir: Path, content: object) -> None:
    path = claude_dir / "plugins" / "installed_plugins.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else msgspec.json.encode(content))


def cache(claude_dir: Path, version: str, marketplace: str = "market") -> Path:
    return claude_dir / "plugins" / "cache" / marketplace / "interflux" / version


@pytest.fixture
def claude_dir(tmp_path: Path) -> Path:
    """Return Claude's directory. A glob would take its name for a pattern."""
    return tmp_path / "cl[a]ude*"


def test_plugin_that_is_not_installed(claude_dir: Path) -> None:
    assert installed_budget_file(str(claude_dir)) is None


@pytest.mark.parametrize("as_list", [True, False], ids=["version 2", "version 1"])
def test_recorded_plugin_takes_precedence(tmp_path: Path, claude_dir: Path, as_list: bool) -> None:
    installed(cache(claude_dir, "9.9.9"))
    expected = installed(tmp_path / "elsewhere")
    entry = {"installPath": str(tmp_path / "elsewhere"), "version": "0.1.0"}
    other = {"installPath": str(tmp_path), "version": "8"}
    plugins = {"interflux@market": [other, entry] if as_list else entry, "interfluxious@market": other}
    recorded(claude_dir, {"version": 2, "plugins": plugins})
    assert installed_budget_file(str(claude_dir)) == expected


def test_stale_record_is_ignored(tmp_path: Path, claude_dir: Path) -> None:
    expected = installed(cache(claude_dir, "0.2.1"))
    recorded(claude_dir, {"plugins": {"interflux@market": [{"installPath": str(tmp_path / "gone"), "version": "9"}]}})
    assert installed_budget_file(str(claude_dir)) == expected


def test_newest_cached_version_is_used(claude_dir: Path) -> None:
    """Numeric parts are compared as numbers; a textual part is lower than any number."""
    ascending = ["unknown", "0.2", "0.2.9", "0.2.10-rc1", "0.2.10", "0.10.0", "1"]
    for version in ascending:
        expected = installed(cache(claude_dir, version))
        assert installed_budget_file(str(claude_dir)) == expected, version


def test_newest_file_of_equal_versions_is_used(claude_dir: Path) -> None:
    one, other = installed(cache(claude_dir, "1.0", "b")), installed(cache(claude_dir, "1.0", "a"))
    os.utime(one, (1, 1))
    assert installed_budget_file(str(claude_dir)) == other
    os.utime(other, (0, 0))
    assert installed_budget_file(str(claude_dir)) == one


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff", b"[" * 100_000, [], None, {"plugins": []}, {"plugins": {"interflux@m": 5}},
        {"plugins": {"interflux@m": [5, None, {}, {"installPath": 5}, {"installPath": "relative"}]}},
        {"plugins": {"interflux@m": [{"installPath": "/a\0b", "version": [1]}]}},
        {"plugins": {"interflux@m": [{"installPath": "/", "version": "9" * 9999}]}},
        b'{"plugins": {"interflux@m": [{"installPath": "/\\udcff"}]}}', b" " * ((1 << 20) + 1),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_invalid_record_is_ignored(claude_dir: Path, content: object) -> None:
    expected = installed(cache(claude_dir, "1.0"))
    recorded(claude_dir, content)
    assert installed_budget_file(str(claude_dir)) == expected


@pytest.mark.parametrize(("make", "message"), IN_THE_WAY)
def test_record_that_is_not_a_regular_file_is_ignored(
    claude_dir: Path, make: Callable[[Path], None], message: str
) -> None:
    expected = installed(cache(claude_dir, "1.0"))
    make(claude_dir / "plugins" / "installed_plugins.json")
    assert installed_budget_file(str(claude_dir)) == expected, message


def test_settings_merge_the_files(tmp_path: Path) -> None:
    """Each request merges the plugin's or the configured file, the calibrated multiplier, and the project's file."""
    claude_dir, config = tmp_path / "claude", tmp_path / "config.toml"
    plugin = Path(installed(cache(claude_dir, "1.0")))
    plugin.write_text("min_agents: 4\n")
    settings = Settings(str(config), required=False, claude_dirs=ClaudeDirectories(default=(str(claude_dir),)))
    settings.load_first()

    def review() -> ReviewBudget:
        async def ask() -> ReviewBudget:
            await settings.refresh()
            return await settings.review_budget(str(tmp_path / "project"))

        return anyio.run(ask)

    assert (review().min_agents, review().slicing_multiplier, review().files) == (4, 0.5, (str(plugin),))
    (tmp_path / "calibration.json").write_bytes(msgspec.json.encode(CALIBRATION))
    assert review().slicing_multiplier == 0.4
    theirs = project_file(tmp_path / "project")
    theirs.write_text("slicing_multiplier: 0.3\n")
    assert (review().slicing_multiplier, review().files) == (0.3, (str(plugin), str(theirs)))
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text("min_agents: 9\n")
    config.write_text(f"[flux_drive]\nbudget_file = '{chosen}'\n")
    assert (review().min_agents, review().files) == (9, (str(chosen), str(theirs)))
    theirs.write_text("slicing_multiplier: no\n")
    assert wrong(review, theirs) == "slicing_multiplier is false; allowed: a number, above 0, at most 10"
    assert settings.faults == ()
