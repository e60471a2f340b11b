import csv
import json
import re
import subprocess

import numpy as np
import pytest

from tests.test_readme import ROOT, project_in
from tests.volumes import geometry, pixels


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    done = subprocess.run(
        ["sh", "-euc", commands],
        cwd=tmp_path,
        env=project_in(tmp_path),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "tutorial"
    run = folder / "output" / "demo_recons_MIL"
    for name in ("report.html", "settings.yaml"):
        assert (run / name).is_file(), name

    predicted = folder / "predicted"
    with (predicted / "summary.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"diseased_000", "healthy_000"}
    assert geometry(predicted / "masks" / "healthy_000.nii.gz") == geometry(
        folder / "raw" / "ct" / "healthy_000.nii.gz"
    )
    # The DICOM scan lies where its lungs and lesions, which are not DICOM, lie.
    mask, lung = (predicted / "masks" / "diseased_000.nii.gz", folder / "raw" / "lung" / "diseased_000.nii.gz")
    for ours, theirs in zip(geometry(mask), geometry(lung), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    _, spacing, *_ = geometry(mask)
    ml = pixels(mask).sum() * np.prod(spacing) / 1000
    assert float(rows["diseased_000"]["lesion_ml"]) == np.float64(f"{ml:.6g}")
    found = {case_id for case_id, row in rows.items() if float(row["lesion_ml"]) > 0}
    segmented = {path.stem for path in (predicted / "dicom_seg").glob("*.dcm")}
    assert segmented == found & {"diseased_000"}
    for page in (predicted / "report.html", folder / "tested" / "report.html", run / "report.html"):
        assert "research" in page.read_text(encoding="utf-8")

    summary = json.loads((folder / "tested" / "summary.json").read_text())
    assert summary["lesion"]["scans"] == summary["raw"]["lesion"]["scans"] == 2
    assert (folder / "segmenter.onnx").is_file()
