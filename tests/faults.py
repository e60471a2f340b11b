"""The table of docs/faults.md: what goes wrong, what happens, and the tests that show it."""

import re
from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "faults.md"


def rows() -> dict[str, list[str]]:
    """Tests by the row of the table that names them: the case, and node ids from tests/ on, without parameters."""
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 3 and (tests := re.findall(r"[\w/]+\.py::\w+", cells[2])):
            found[cells[0]] = [f"tests/{test}" for test in tests]
    return found
