"""The files around the code: the map, the container, the citation, the changelog."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
PASSED_OVER = ("tests", "data", "output", "demo", "example")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def modules():
    """Every Python file outside of tests, as a path in the project."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return {
        path.as_posix()
        for path in found
        if path.parts[0] not in PASSED_OVER and not any(part.startswith((".", "__")) for part in path.parts[:-1])
    }


def test_the_map_lists_every_script_and_folder_of_modules_and_only_what_exists():
    lines = read("CONTRIBUTING.md").split("## Map")[1].split("\n## ")[0].splitlines()
    rows = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| `")]
    listed = [path for paths, _ in rows for path in re.findall(r"`([^`]+)`", paths)]
    assert len(listed) == len(set(listed))
    there = {path if "/" not in path else path.rpartition("/")[0] + "/" for path in modules()}
    assert {"train.py", "models/", "datasets/phantom/"} <= there
    assert there - set(listed) == set()
    assert [path for path in listed if not (ROOT / path).exists()] == []
    for paths, content in rows:
        folder = re.search(r"`([^`]+)`", paths)[1]
        for name in re.findall(r"`([\w/]+\.\w+|[\w/]+/)`", content):
            assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name


def instructions():
    """The instructions of the Dockerfile: (word, rest)."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def is_ignored(path):
    """Whether .dockerignore keeps a path of the project out of the image: the last line that it matches says so."""
    ignored = False
    parts = path.split("/")
    heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in read(".dockerignore").splitlines():
        pattern = line.removeprefix("!")
        name = pattern[3:] if pattern.startswith("**/") else None
        if any(fnmatch(head, pattern) or (name and fnmatch(Path(head).name, name)) for head in heads):
            ignored = not line.startswith("!")
    return ignored


def test_what_the_image_copies_exists_and_what_it_runs_is_in_it():
    sources = [word for kind, rest in instructions() if kind == "COPY" for word in rest.split()[:-1]]
    assert sources == ["requirements.txt", "scripts/environment.sh", "."]
    for source in sources:
        assert (ROOT / source).exists()
    tracked = [*modules(), "configs/Gan.yaml", "requirements.txt"]
    tracked += ["pyproject.toml", "scripts/environment.sh", "pretrained/segmenter.pth"]
    assert [path for path in tracked if is_ignored(path)] == []
    for path in (".git/config", ".venv/bin/python", "data/images/a.nii.gz", "output/run/x.yaml", "my/weights.pth"):
        assert is_ignored(path), path


def test_the_image_runs_the_scripts_as_a_user_with_few_rights():
    kinds = [kind for kind, _ in instructions()]
    steps = dict(instructions())
    base = re.match(r"python:3\.(\d+)-slim$", steps["FROM"])
    lowest, above = re.match(
        r">=3\.(\d+),<3\.(\d+)$", tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    ).groups()
    assert int(lowest) <= int(base[1]) < int(above)
    assert steps["USER"] != "root"
    assert kinds.index("USER") > max(n for n, kind in enumerate(kinds) if kind == "RUN")
    assert steps["ENTRYPOINT"] == f'["{steps["WORKDIR"]}/.venv/bin/python"]'
    assert yaml.safe_load(steps["CMD"]) == ["train.py", "--help"]
    # Packages come from requirements.txt alone, through scripts/environment.sh.
    runs = [rest for kind, rest in instructions() if kind == "RUN"]
    assert not any("pip" in run or "apt" in run for run in runs)
    assert "PIP_NO_CACHE_DIR=1" in steps["ENV"]


def test_the_citation_has_what_cff_asks_for():
    citation = yaml.safe_load(read("CITATION.cff"))
    # Required by CFF 1.2.0: of the file, and of a reference.
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == VERSION
    assert citation["license"] == "MIT"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    cited = re.search(r"author=\{(.*?)\}", read("README.md"))[1].split(" and ")
    assert [f"{person['given-names']} {person['family-names']}" for person in paper["authors"]] == cited
    assert re.search(r"title=\{(.*?)\}", read("README.md"))[1] == paper["title"]


def test_the_changelog_knows_this_version():
    headings = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[?{re.escape(VERSION)}\]? - \d{{4}}-\d\d-\d\d", headings[1])
