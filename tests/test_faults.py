"""Every case of docs/faults.md is shown by a test, and every marker names a case."""

import re
from pathlib import Path

from tests.faults import case_of, cases


def test_markers_and_cases_match():
    text = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    marked = {
        case_of(match[1]) for match in re.finditer(r"^@pytest\.mark\.fault\([\"'](.+)[\"']\)$", text, re.MULTILINE)
    }
    assert len(cases()) == len(set(cases())) > 80
    assert marked == set(cases())
