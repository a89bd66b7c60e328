"""The rules of `config/yaml_nodes.py`, which hold with each version of PyYAML and with both of its loaders.

`make yaml-test` runs this module once with each version in `requirements/pyyaml`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fluxbudgetd.config import yaml_nodes
from fluxbudgetd.config.reading import read_text
from fluxbudgetd.config.yaml_nodes import top_level, value_of
from harness.configuration import wrong

Values = Callable[[str], dict[str, object]]
EXPECTED_VERSION = os.environ.get("FLUXBUDGET_PYYAML", yaml.__version__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.yaml"


@pytest.fixture
def values(path: Path, yaml_loader: str) -> Values:
    """Write a file, read it back, and return its top-level map as values."""

    def read(content: str) -> dict[str, object]:
        path.write_text(content)
        text = read_text(str(path))
        assert text is not None
        return {name: value_of(node) for name, node in top_level(text, str(path)).items()}

    return read


def test_version_of_pyyaml() -> None:
    """The requested version is the one under test, with libyaml if a build for this Python exists."""
    assert yaml.__version__ == EXPECTED_VERSION
    no_build = yaml.__version__ == "6.0.1" and sys.version_info >= (3, 13)
    assert yaml.__with_libyaml__ or no_build or "FLUXBUDGET_PYYAML" not in os.environ


# --- duplicate keys


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("plan: 1\nplan: 2\n", {"plan": 2}),
        ("plan: 1\n'plan': 2\nspec: 3\n\"plan\": 4\n", {"plan": 4, "spec": 3}),
        ("b: {plan: 1, plan: 2, plan: 3}", {"b": {"plan": 3}}),
        ("b: {plan: 1}\nb: {spec: 2}", {"b": {"spec": 2}}),
    ],
)
def test_last_of_duplicate_keys_counts(values: Values, content: str, expected: object) -> None:
    assert values(content) == expected


def test_keys_that_are_not_text_are_ignored(values: Values) -> None:
    assert values("1: a\ntrue: b\n~: c\n[d]: e\n? {f: g}\n: h\n2026-01-01: i\n!own j: k\nplan: 1") == {"plan": 1}


# --- merge keys

MAPS = "one: &one {plan: 1, spec: 1}\ntwo: &two {plan: 2, repo: 2}\nthree: &three {<<: *two, spec: 3, diff: 3}\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{<<: *one, spec: 9}", {"plan": 1, "spec": 9}),
        ("{spec: 9, <<: *one}", {"plan": 1, "spec": 9}),
        ("{<<: {plan: 8}, spec: 9}", {"plan": 8, "spec": 9}),
        ("{<<: [*one, *two]}", {"plan": 1, "spec": 1, "repo": 2}),
        ("{<<: [*two, *one]}", {"plan": 2, "spec": 1, "repo": 2}),
        ("{<<: [*one, *three]}", {"plan": 1, "spec": 1, "repo": 2, "diff": 3}),
        ("{<<: [*three, *one]}", {"plan": 2, "spec": 3, "repo": 2, "diff": 3}),
        ("{<<: [*two, *three, *one], plan: 9}", {"plan": 9, "spec": 3, "repo": 2, "diff": 3}),
        ("{<<: *one, <<: *two}", {"plan": 2, "spec": 1, "repo": 2}),
        ("{<<: *two, <<: *one}", {"plan": 1, "spec": 1, "repo": 2}),
        ("{<<: [*one, *two], <<: *three}", {"plan": 2, "spec": 3, "repo": 2, "diff": 3}),
        ("&self {<<: [*one, *self], repo: 9}", {"plan": 1, "spec": 1, "repo": 9}),
        ("{<<: [], <<: text, <<: [1, [*one]], <<: , plan: 9}", {"plan": 9}),
        ("{'<<': 5, plan: 9}", {"<<": 5, "plan": 9}),
    ],
)  # fmt: skip
def test_merge_keys(values: Values, content: str, expected: object) -> None:
    assert values(f"{MAPS}budgets: {content}")["budgets"] == expected


def test_merge_key_at_the_top(values: Values) -> None:
    assert values("<<: {plan: 1, spec: 2}\nspec: 3") == {"plan": 1, "spec": 3}


def test_equal_keys_in_merged_maps(values: Values) -> None:
    """PyYAML 6.0.4 alone overrides an earlier map's key here, depending on which strings Python shares."""
    maps = "a: &a {plan: 1}\nb: &b {<<: *a, spec: 9}\nc: &c {<<: *b, plan: 5}\n"
    assert values(f"{maps}budgets: {{<<: [*a, *c], repo: 1}}")["budgets"] == {"plan": 1, "spec": 9, "repo": 1}


# --- depth


@pytest.mark.parametrize(
    ("opening", "place"),
    [
        ("[", "line 1, column 65"),
        ("{", "line 1, column 65"),
        ("[{", "line 1, column 65"),
        ("- ", "line 1, column 129"),
        ("? ", "line 1, column 129"),
        ("{a: ", "line 1, column 257"),
        (" [\n", "line 65, column 2"),
    ],
)
@pytest.mark.parametrize("levels", [65, 1_000, 1_002, 100_000])
def test_deep_nesting_is_refused(path: Path, values: Values, levels: int, opening: str, place: str) -> None:
    """Without our limit, libyaml 0.2.5 crashes the process, and 0.2.6 allows up to 1,000 levels."""
    assert wrong(lambda: values(opening * levels), path) == f"{place}: nested deeper than 64 levels"


@pytest.mark.parametrize("rest", ["@", "}", "'", "? *b", "\n\t[", "]" * 65 + "\n]"])
@pytest.mark.parametrize("levels", [65, 1_002])
def test_depth_is_reported_before_later_errors(path: Path, values: Values, levels: int, rest: str) -> None:
    said = wrong(lambda: values("[" * levels + rest), path)
    assert said == "line 1, column 65: nested deeper than 64 levels"


def test_earlier_errors_are_reported_before_depth(path: Path, values: Values) -> None:
    assert "nested" not in wrong(lambda: values("a: ]\n" + "[" * 65), path)


def test_deepest_nesting_that_is_allowed(values: Values) -> None:
    assert values(f"a: {'[' * 63}{']' * 63}\nplan: 1")["plan"] == 1


def test_width_is_not_depth(values: Values) -> None:
    assert values(f"a: [{'[], ' * 1_000}]\nplan: 1")["plan"] == 1


# --- aliases


def bomb(first: str, following: str) -> str:
    """Return aliases of aliases, nine at each level, that stand for more values than a computer can hold."""
    lines = [f"l0: &l0 {first}"]
    lines += [f"l{level}: &l{level} {following % ', '.join([f'*l{level - 1}'] * 9)}" for level in range(1, 40)]
    return "\n".join(lines) + "\n"


def test_aliases_in_values_are_never_expanded(values: Values) -> None:
    found = values(f"{bomb('[x]', '[%s]')}agents: *l39")["agents"]
    assert isinstance(found, list)
    assert [str(item) for item in found] == ["a list"] * 9


def test_aliases_in_merge_keys_are_never_expanded(values: Values) -> None:
    assert values(f"{bomb('{plan: 5}', '{<<: [%s]}')}budgets: *l39")["budgets"] == {"plan": 5}


def test_map_that_holds_itself(values: Values) -> None:
    found = values("budgets: &b {plan: 1, again: *b}")["budgets"]
    assert isinstance(found, dict)
    assert (found["plan"], str(found["again"])) == (1, "a map")


# --- size


def test_largest_file(values: Values) -> None:
    text = "plan: 1\n"
    assert values(text + "#" * ((1 << 20) - len(text))) == {"plan": 1}


def test_larger_file(path: Path, values: Values) -> None:
    """It is refused for its size before it is parsed: its content would be an error, too."""
    said = wrong(lambda: values("]" * ((1 << 20) + 1)), path)
    assert said == "it is larger than 1 MiB; allowed: at most 1 MiB"


@pytest.mark.parametrize("number", ["9" * 101, "1" + ":1" * 50, "0." + "1" * 99, "0b" + "1" * 99])
def test_long_number_is_not_computed(values: Values, number: str) -> None:
    assert str(values(f"plan: {number}")["plan"]).startswith(f"{number[:59]}… (!!")


def test_longest_number(values: Values) -> None:
    assert values(f"plan: {'9' * 100}") == {"plan": int("9" * 100)}


# --- tags


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: !!python/object/apply:os.mkdir [x]", "line 1, column 4: the tag !!python/object/apply:os.mkdir"),
        ("a: [{b: !!python/name:os.x ''}]", "line 1, column 9: the tag !!python/name:os.x"),
        ("!!python/tuple [1]", "line 1, column 1: the tag !!python/tuple"),
        ("a: 1\n!!python/name:os.x '': 1", "line 2, column 1: the tag !!python/name:os.x"),
    ],
)
def test_python_tag_is_refused(path: Path, values: Values, content: str, said: str) -> None:
    assert wrong(lambda: values(content), path) == f"{said}; allowed: plain values"


def test_loader_is_that_of_the_fixture(yaml_loader: str) -> None:
    assert yaml_nodes.LOADER.__name__ == {"C": "CSafeLoader", "Python": "SafeLoader"}[yaml_loader]
