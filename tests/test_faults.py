"""The table of docs/faults.md is true: its rows name tests that there are."""

import ast
from pathlib import Path

from tests.faults import TABLE, rows

ROOT = Path(__file__).parents[1]


def test_every_row_names_tests_that_exist():
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cases = [line for line in lines if not line.startswith(("| case", "| mutants of"))]
    table = rows()
    assert len(table) > 80
    assert len([line for line in cases if "::" in line]) == len(table)
    for case, tests in table.items():
        for test in tests:
            path, name = test.split("::")
            assert name in functions(ROOT / path), f"{case}: {test}"


def functions(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}
