"""The findings about gradients hold, where the PyTorch that is installed is the one they are about."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "findings"


@pytest.mark.parametrize("name", ["bfloat16_gradient", "instance_norm_gradient"])
def test_a_finding_about_gradients_is_as_it_was_found(name, capsys):
    text = (FOLDER / f"{name}.sh").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"\btorch==([\d.]+\d)", text)
    if torch.__version__.split("+")[0] != pinned:
        pytest.skip(f"torch {torch.__version__} is installed, the finding is about {pinned}")
    (code,) = re.findall(r"<<'END'\n(.*?)^END$", text, re.DOTALL | re.MULTILINE)
    with suppress(SystemExit):
        exec(code, {})
    out = capsys.readouterr().out
    assert "as found" in out or "cannot show it" in out
