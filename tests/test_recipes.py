"""The recipes of CONTRIBUTING.md, applied to a copy of the project, whose affected tests must then pass.

A recipe is a section with blocks of two kinds. A ``diff`` block begins with ``--- FILE``; its hunks, separated by
``@@``, replace the lines that begin with a space or ``-`` by those that begin with a space or ``+``, or add lines at
the end of the file. A ``sh`` block has the commands that must then succeed.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_readme import ROOT, environment_for

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LEFT_OUT = {".git", ".venv", "demo", "data", "output", "example", ".pytest_cache", ".hypothesis"}


def recipes():
    sections = CONTRIBUTING.split("\n## Recipes\n")[1].split("\n## ")[0].split("\n### ")[1:]
    return dict(section.split("\n", 1) for section in sections)


def blocks(recipe, kind):
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```", recipe, re.DOTALL | re.MULTILINE)


def apply(block, folder):
    """Apply a diff block to the file that it names, and return the file's name."""
    first, _, rest = block.partition("\n")
    name = first.removeprefix("--- ")
    path = folder / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for hunk in re.split(r"^@@\n", rest, flags=re.MULTILINE):
        lines = [line or " " for line in hunk.splitlines()]
        assert all(line[0] in " +-" for line in lines), hunk
        old, new = ("".join(line[1:] + "\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
        if not old:
            text += new
            continue
        assert text.count(old) == 1, f"{name} has this {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def test_ten_recipes_fit_the_files_and_every_one_says_how_many_it_changes(tmp_path):
    assert len(recipes()) == 10
    for name, recipe in recipes().items():
        folder = tmp_path / name
        files = {block.partition("\n")[0].removeprefix("--- ") for block in blocks(recipe, "diff")}
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        assert {apply(block, folder) for block in blocks(recipe, "diff")} == files
        said = re.search(r"^Files to change: (\d+)", recipe, re.MULTILINE)
        assert int(said[1]) == len(files), name


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_a_recipe_can_be_followed_to_the_letter(name, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=lambda at, names: {"__pycache__", *(LEFT_OUT if Path(at) == ROOT else ())})
    changed = [apply(block, copy) for block in blocks(recipes()[name], "diff")]
    commands = blocks(recipes()[name], "sh")
    assert commands
    files = " ".join(file for file in changed if file.endswith(".py"))
    checks = f"python -m ruff check {files}\npython -m ruff format --check {files}\n"
    words, environment = ["sh", "-euc", checks + "\n".join(commands)], environment_for(tmp_path)
    done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
