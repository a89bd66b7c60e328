"""Reviews with a real daemon and client: agents, triages, and what agents have cost before."""

import json
from pathlib import Path
from typing import Any

from harness.daemon import Home
from harness.interstat import Interstat

MODEL = "claude-opus-4-6"
LONG_AGO = "2026-01-01T00:00:00Z"


def agent(name: str, score: float = 3, stage: int = 2, **fields: Any) -> dict[str, Any]:
    return {"name": name, "score": score, "stage": stage, **fields}


def triage(home: Home, agents: object, *arguments: str, environ: dict[str, str] | None = None) -> Any:
    """Run `triage`, require exit 0, and return what it prints."""
    result = home.ctl("triage", *arguments, stdin=json.dumps({"agents": agents}), environ=environ)
    assert result.returncode == 0, result
    return json.loads(result.stdout)


def past(interstat: Interstat, name: str, billing: int, times: int = 3, **fields: Any) -> None:
    """Insert old rows of an agent with this cost, in another session."""
    for _ in range(times):
        fields = {"model": MODEL, "timestamp": LONG_AGO, "total_tokens": billing * 10, **fields}
        interstat.insert("old", name, input_tokens=billing - 10, output_tokens=10, **fields)


def project_file(home: Home, text: str) -> Path:
    file = home.project / ".claude" / "flux-drive-budget.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file
