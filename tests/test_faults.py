"""Every case of docs/faults.md is shown by a test, and every marker names a case.

A test shows cases by ``@pytest.mark.fault("...", ...)`` with the beginning of each, long enough to be the only one.
"""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def cases():
    """The cases of the tables with two columns, in their order."""
    lines = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    return [row[0] for row in rows if len(row) == 2 and row[0] != "case"]


def test_markers_and_cases_match():
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    marked, known = set(), cases()
    markers = re.findall(r"^@pytest\.mark\.fault\((\".+\")\)$", text, re.MULTILINE)
    for beginning in (name for marker in markers for name in re.findall(r'"([^"]+)"', marker)):
        found = [beginning] if beginning in known else [case for case in known if case.startswith(beginning)]
        assert len(found) == 1, f"{beginning!r} begins {len(found)} cases of docs/faults.md"
        marked.update(found)
    assert len(known) == len(set(known)) > 80
    assert marked == set(known)
