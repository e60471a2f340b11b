"""Real CTs, from the raw scan to a mask on its own grid."""

from pathlib import Path

import pytest
import SimpleITK as sitk

import predict
from datasets.lungs import segment_by_threshold
from tests.outputs import save_model, table
from tests.volumes import geometry, pixels

CT = Path(__file__).resolve().parents[2] / "shared" / "ct"
SCANS = {"thorax_cta_1.5mm": "thorax_cta_1.5mm.nii.gz", "lung_lesion_5mm": "lung_lesion_5mm.nrrd"}


@pytest.mark.skipif(not CT.is_dir(), reason=f"no real CTs at {CT}")
def test_what_is_found_in_real_cts_lies_in_their_lungs(tmp_path):
    model, output = save_model(tmp_path / "segmenter.pth", (40, 160, 160), seed=0), tmp_path / "out"
    options = ["--model-path", str(model), "--output", str(output), "--lungs", "threshold", "--device", "cpu"]
    assert predict.main([*(str(CT / name) for name in SCANS.values()), *options, "--quiet", "--no-report"]) == 0
    rows = table(output / "summary.csv")
    for case_id, name in SCANS.items():
        assert geometry(output / "masks" / name) == geometry(CT / name)
        found = pixels(output / "masks" / name)
        assert 0 < found.sum() < found.size
        # What an untrained network marks lies in the lungs: in air, for the most part.
        assert (pixels(CT / name)[found > 0] < -400).mean() > 0.7
        # Lungs of adults, in litres, and what is darker than tissue.
        assert 2 < float(rows[case_id]["lung_ml"]) / 1000 < 8
        assert 0 < float(rows[case_id]["lesion_percent_of_lung"]) < 100
        assert -950 < float(rows[case_id]["lesion_mean_hu"]) < -400
    # A tumour is lung, too.
    labels = segment_by_threshold(sitk.ReadImage(str(CT / SCANS["lung_lesion_5mm"])))
    assert (labels[pixels(CT / "lung_lesion_5mm_label.nrrd") > 0] > 0).mean() > 0.9
