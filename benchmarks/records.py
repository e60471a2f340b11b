"""Results as JSON and Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def as_json(content: Mapping[str, Any]) -> str:
    """JSON that reads and diffs well: lists and mappings without others inside are a line each."""
    text = json.dumps(content, indent=1)
    # Strings of JSON have no line ends.
    return re.sub(r"[\[{][^][{}]*[\]}]", lambda inner: re.sub(r"\n *", " ", inner[0]), text) + "\n"


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys, which are its heading; None is an empty cell."""
    cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
