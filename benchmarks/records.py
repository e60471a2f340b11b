"""Result files as JSON that reads and diffs well: one line per scan, history entry or measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_json(content: Mapping[str, Any]) -> str:
    """JSON with one key per line at the top and one line per item of every list of mappings.

    Mappings that hold such a list are spread over lines in the same way; everything else stays on the line of its key.
    """
    return _spread(content, "") + "\n"


def _spread(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, Mapping):
        lines = [
            f"{deeper}{json.dumps(key)}: {_spread(item, deeper) if _holds_records(item) else json.dumps(item)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{deeper}{json.dumps(item)}" for item in value) + f"\n{indent}]"


def _holds_records(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_records(item) for item in value.values())
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
