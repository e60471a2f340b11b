"""Read YAML from untrusted files: plain values only, bounded in size and depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from utils.errors import SettingsError

_LARGEST_FILE = 2**20
_LONGEST_NUMBER = 40
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader without aliases, tags, repeated keys and very long numbers; ``1e-4`` is a number, as in YAML 1.2.

    Aliases let a short text expand to gigabytes, and tags can construct arbitrary objects.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse anchors, aliases and tags."""
        event = self.peek_event()
        for given, what in ((event.anchor, "anchors (&) and aliases (*)"), (getattr(event, "tag", None), "tags (!)")):
            if given is not None:
                raise yaml.MarkedYAMLError(problem=f"{what} are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.Node) -> Any:
        """Refuse very long numbers."""
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(node.value)} characters", problem_mark=node.start_mark
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are not words, and repeated keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"the key {shorten(repr(key))} is not a word"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            if key in seen:
                self.repeated_key(key, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def repeated_key(self, key: str, mark: yaml.Mark) -> None:
        """Refuse a key that its mapping holds already."""
        raise yaml.MarkedYAMLError(problem=f"the key {shorten(key)} is given twice", problem_mark=mark)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_text(path: Path) -> str:
    """Read a settings file of at most 1 MB as UTF-8.

    Raises:
        SettingsError: the file cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise SettingsError(f"{path}: larger than 1 MB; expected a YAML file such as configs/Gan.yaml")
        return content.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8 text; expected a YAML file such as configs/Gan.yaml") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; expected a YAML file such as configs/Gan.yaml") from None


def parse_yaml(text: str, source: str, loader: type[StrictLoader] = StrictLoader) -> Any:
    """Parse YAML of plain values.

    Args:
        text: YAML.
        source: where the text comes from, for error messages.
        loader: a variant of the loader.

    Raises:
        SettingsError: the text is not valid YAML, nests too deeply, or uses anchors, aliases, tags, repeated keys,
            keys that are not words, or numbers of more than 40 characters.
    """
    try:
        return yaml.load(text, Loader=loader)
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
