"""A process that writes to intercore's database as fast as it can: python ic_writer.py PROJECT RUN COMMITS.

Each commit opens the database, inserts a dispatch, replaces a state row, and closes the database. The numbers are those
of the commit, so the test knows every row. Its exit code says whether all commits succeeded.
"""

import sys
from pathlib import Path

from harness.intercore import IcProject

_DISPATCH = "INSERT INTO dispatches(id, project_dir, scope_id, input_tokens, created_at) VALUES (?, ?, ?, ?, ?)"
_STATE = "INSERT OR REPLACE INTO state VALUES ('counter', ?, ?, ?, NULL)"

if __name__ == "__main__":
    project, run, commits = IcProject(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    for number in range(commits):
        project.write((_DISPATCH, (f"d{number:05}", "/p", run, number, number)), (_STATE, (run, str(number), number)))
