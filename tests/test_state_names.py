"""Where the state files are and how they are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.state_names import file_name, hard_directory, state_directory
from fluxbudgetd.wire.text import fold, unfold


@given(st.text(), st.text())
def test_different_names_have_different_files(one: str, two: str) -> None:
    files = file_name(one), file_name(two)
    if None not in files:
        assert (files[0] == files[1]) == (unfold(one) == unfold(two))


@given(st.binary().map(fold) | st.text(alphabet=st.characters(codec=None)))
def test_name_is_one_plain_component_or_missing(name: str) -> None:
    written = file_name(name)
    if written is not None:
        assert 0 < len(written) <= 200
        assert written.isascii()
        assert not set(written) & set("/\0\n \\'\"$`;&|<>*?[]()!~#")
        assert not written.startswith(".")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("run-1:a.B_c", "run-1:a.B_c"),
        ("..", "%2E."),
        (".x", "%2Ex"),
        ("a/b%é", "a%2Fb%25%C3%A9"),
        (fold(b"\xff"), "%FF"),
        ("", None),
        ("x" * 200, "x" * 200),
        ("x" * 201, None),
        ("/" * 66, "%2F" * 66),
        ("/" * 67, None),
        ("\ud800", None),
    ],
)
def test_names(name: str, written: str | None) -> None:
    assert file_name(name) == written


def test_directory_is_beside_the_socket() -> None:
    assert state_directory("/run/user/1/fluxbudget/fluxbudgetd.sock") == "/run/user/1/fluxbudget/state"
    assert hard_directory("/run/user/1/fluxbudget/fluxbudgetd.sock") == "/run/user/1/fluxbudget/hard"
