"""The cases of docs/faults.md, and the tests that show them.

A test shows a case by ``@pytest.mark.fault("...")`` with the beginning of the case, long enough to be the only one.
"""

from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "faults.md"


def cases() -> list[str]:
    """The cases of the tables with two columns, in their order."""
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 2 and cells[0] != "case":
            found.append(cells[0])
    return found


def case_of(beginning: str) -> str:
    """The case that a marker names.

    Raises:
        ValueError: no case begins so, or several do.
    """
    known = cases()
    found = [beginning] if beginning in known else [case for case in known if case.startswith(beginning)]
    if len(found) != 1:
        raise ValueError(f"{beginning!r} begins {len(found)} cases of docs/faults.md; expected one")
    return found[0]
