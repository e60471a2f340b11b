import re
import subprocess

import pytest

from tests.outputs import summary, table
from tests.test_readme import ROOT, project_in
from tests.volumes import geometry


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    words, environment = ["sh", "-euc", commands], project_in(tmp_path)
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "tutorial"
    predicted = folder / "predicted"
    rows = table(predicted / "summary.csv")
    assert set(rows) == {"diseased_000", "healthy_000"}
    assert geometry(predicted / "masks/healthy_000.nii.gz") == geometry(folder / "raw/ct/healthy_000.nii.gz")
    found = {case_id for case_id, row in rows.items() if float(row["lesion_ml"]) > 0}
    assert {path.stem for path in (predicted / "dicom_seg").glob("*.dcm")} == found & {"diseased_000"}
    for page in (predicted / "report.html", folder / "tested" / "report.html"):
        assert "research" in page.read_text(encoding="utf-8")
    tested = summary(folder / "tested")
    assert tested["lesion"]["scans"] == tested["raw"]["lesion"]["scans"] == 2
    assert (folder / "segmenter.onnx").is_file()
