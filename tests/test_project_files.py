"""The files around the code: the map and the container."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_map_lists_every_script_and_folder_of_modules_and_only_what_exists():
    lines = read("CONTRIBUTING.md").split("## Map")[1].split("\n## ")[0].splitlines()
    rows = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| `")]
    listed = [path for paths, _ in rows for path in re.findall(r"`([^`]+)`", paths)]
    assert [path for path in listed if not (ROOT / path).exists()] == []
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("[a-z]*/**/__init__.py")}
    folders = {folder for folder in folders if not folder.startswith(("tests", "benchmarks/", "data/", "output/"))}
    assert ({path.name for path in ROOT.glob("*.py")} | folders) - set(listed) == set()
    for paths, content in rows:
        folder = re.search(r"`([^`]+)`", paths)[1]
        for name in re.findall(r"`([\w/]+\.\w+|[\w/]+/)`", content):
            assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name


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


def test_citation_and_changelog_are_of_this_version():
    assert f"\nversion: {PROJECT['version']}\n" in read("CITATION.cff")
    assert re.findall(r"^## \[?([\w.]+)", read("CHANGELOG.md"), re.MULTILINE)[:2] == ["Unreleased", PROJECT["version"]]
