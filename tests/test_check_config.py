"""The daemon's options --check-config and --print-config."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness.configuration import CALIBRATION, TEMPLATE
from harness.privilege import OBEDIENT


def check_config(home: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "fluxbudgetd", *arguments],
        env={**kept, "HOME": str(home), "PYTHONUTF8": "1", "XDG_RUNTIME_DIR": str(home / "run")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_without_files(tmp_path: Path) -> None:
    result = check_config(tmp_path, "--check-config")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"absent: {tmp_path}/.config/fluxbudget/config.toml (defaults)",
        f"absent: {tmp_path}/.config/fluxbudget/calibration.json (defaults)",
        f"absent: {tmp_path}/.claude/plugins/cache/*/interflux/*/config/flux-drive/budget.yaml (defaults)",
    ]


def test_check_with_every_file(tmp_path: Path) -> None:
    config, review = tmp_path / "own.toml", tmp_path / "own.yaml"
    config.write_text('[flux_drive]\nbudget_file = "~/own.yaml"\n')
    review.write_text("min_agents: 3\n")
    (tmp_path / "calibration.json").write_bytes(msgspec.json.encode(CALIBRATION))
    result = check_config(tmp_path, "--check-config", "--config", str(config))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"ok: {config}", f"ok: {tmp_path}/calibration.json", f"ok: {review}"]
    review.write_text("min_agents: -3\n")
    result = check_config(tmp_path, "--check-config", "--config", str(config))
    assert (result.returncode, len(result.stdout.splitlines())) == (78, 2)
    assert result.stderr.splitlines() == [
        f"fluxbudgetd: {review}: min_agents is -3; allowed: 0 to 1000",
        "hint: write an allowed value, or remove the key",
    ]


@pytest.mark.parametrize("arguments", [("--check-config",), ()], ids=["checked", "started"])
def test_error_in_the_file_is_exit_code_78(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[runs]\nwarn_pct = 120\n")
    result = check_config(tmp_path, *arguments, "--config", str(config))
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        f"fluxbudgetd: {config}: runs.warn_pct is 120; allowed: 1 to 99",
        "hint: write an allowed value, or remove the key to get the default",
    ]


def test_absent_file_is_exit_code_78_if_it_was_named(tmp_path: Path) -> None:
    result = check_config(tmp_path, "--check-config", "--config", f"{tmp_path}/none.toml")
    assert result.returncode == 78
    assert f"{tmp_path}/none.toml: the file does not exist" in result.stderr


def test_unreadable_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.touch(mode=0)
    result = check_config(tmp_path, "--check-config", "--config", str(config), prefix=OBEDIENT)
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        f"fluxbudgetd: {config}: it cannot be read: Permission denied",
        f"hint: make it readable: chmod u+r {config}",
    ]


def test_printed_file_is_the_shipped_one_and_valid(tmp_path: Path) -> None:
    """An installed wheel has its own copy."""
    printed = check_config(tmp_path, "--print-config")
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, TEMPLATE.read_text(), "")
    config = tmp_path / ".config" / "fluxbudget" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(printed.stdout)
    assert check_config(tmp_path, "--check-config").stdout.startswith(f"ok: {config}\n")


def test_printing_and_checking_together_is_a_usage_error(tmp_path: Path) -> None:
    assert check_config(tmp_path, "--print-config", "--check-config").returncode == 64


@pytest.mark.parametrize("action", ["--check-config", "--print-config"])
def test_output_that_cannot_be_written(tmp_path: Path, action: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "fluxbudgetd", action],
            env={**os.environ, "HOME": str(tmp_path)}, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (result.returncode, "the output cannot be written" in result.stderr) == (70, True)
