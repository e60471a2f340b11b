"""Read YAML from untrusted files: plain values only, bounded in size and depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from utils.errors import SettingsError

_LARGEST_FILE = 2**20
_LONGEST_NUMBER = 40
_EXPECTED = "expected a YAML file such as configs/Gan.yaml"


class _Loader(yaml.SafeLoader):
    """A SafeLoader without aliases, tags, repeated keys and very long numbers; ``1e-4`` is a number, as in YAML 1.2.

    Aliases let a short text expand to gigabytes, and tags can construct objects.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        for given, what in ((event.anchor, "anchors (&) and aliases (*)"), (getattr(event, "tag", None), "tags (!)")):
            if given is not None:
                _refuse(f"{what} are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.Node) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
            _refuse(f"a number of {len(node.value)} characters", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                _refuse(f"the key {shorten(repr(key))} is not a word", node.start_mark)
            if key in seen:
                _refuse(f"the key {shorten(key)} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _refuse(problem: str, mark: yaml.Mark) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def read_text(path: Path) -> str:
    """Read a settings file of at most 1 MB as UTF-8.

    Raises:
        SettingsError: the file cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise SettingsError(f"{path}: larger than 1 MB; {_EXPECTED}")
        return content.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8 text; {_EXPECTED}") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; {_EXPECTED}") from None


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML of plain values.

    Args:
        text: YAML.
        source: where the text comes from, for error messages.

    Raises:
        SettingsError: the text is not valid YAML, nests too deeply, or uses anchors, aliases, tags, repeated keys,
            keys that are not words, or numbers of more than 40 characters.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = shorten(str(error.problem or error.context), 200)
        raise SettingsError(f"{source}{line}: {problem}; expected plain YAML") from None
    except RecursionError:
        raise SettingsError(f"{source}: nested too deeply; expected sections of settings") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise SettingsError(f"{source}: not valid YAML: {shorten(str(error).splitlines()[0], 200)}") from None


def shorten(text: str, length: int = 60) -> str:
    """Truncate a text for an error message."""
    return text if len(text) <= length else f"{text[:length]}..."
