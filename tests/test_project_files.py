"""The container."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_image_has_what_it_copies_and_runs_as_a_user_with_few_rights():
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    kinds, steps = [kind for kind, _ in instructions], dict(instructions)
    for kind, rest in instructions:
        assert kind != "COPY" or all((ROOT / source).exists() for source in rest.split()[:-1])
    minor = int(re.match(r"python:3\.(\d+)-slim$", steps["FROM"])[1])
    lowest, above = map(int, re.match(r">=3\.(\d+),<3\.(\d+)$", PROJECT["requires-python"]).groups())
    assert lowest <= minor < above
    assert steps["USER"] != "root"
    assert kinds.index("USER") > max(n for n, kind in enumerate(kinds) if kind == "RUN")
