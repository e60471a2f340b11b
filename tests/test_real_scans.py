"""The way of real CTs, from the raw scan to a mask on its own grid, with the scripts as a user runs them."""

from pathlib import Path

import pytest

import lungCrop
import post_processing
import predict
import test
from datasets import lungs
from tests.outputs import save_model, table
from tests.volumes import geometry, pixels

CT = Path(__file__).resolve().parents[2] / "shared" / "ct"
SCANS = {"thorax_cta_1.5mm": "thorax_cta_1.5mm.nii.gz", "lung_lesion_5mm": "lung_lesion_5mm.nrrd"}


def once_a_size(find_lungs):
    found = {}
    return lambda ct: found[ct.GetSize()] if ct.GetSize() in found else found.setdefault(ct.GetSize(), find_lungs(ct))


@pytest.mark.skipif(not CT.is_dir(), reason=f"no real CTs at {CT}")
def test_real_cts_through_crop_test_and_paste_back(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lungs, "segment_by_threshold", once_a_size(lungs.segment_by_threshold))
    raw, root = tmp_path / "raw", tmp_path / "cohort"
    raw.mkdir()
    for name in SCANS.values():
        (raw / name).symlink_to(CT / name)
    arguments = ["--output", str(root), "--lungs", "threshold", "--size", "40", "160", "160", "--quiet"]
    assert lungCrop.main([str(raw), *arguments]) == 0

    (root / "id_txt").mkdir()
    (root / "id_txt" / "real.txt").write_text("\n".join(SCANS))
    model = save_model(tmp_path / "segmenter.pth", (40, 160, 160), seed=0)
    config = Path(__file__).parents[1] / "configs" / "Gan.yaml"
    overrides = [f"DATASET.ROOT={root}", "DATASET.SPLIT.VALIDWL=real"]
    command = ["--config-path", str(config), "--model-path", str(model), "--quiet", "--device", "cpu", "--save-vis"]
    assert test.main([*command, *overrides, "--split", "VALIDWL"]) == 0
    assert "unknown (2 scans" in capsys.readouterr().out

    output = tmp_path / "full"
    rest = ["--masks", str(tmp_path / "test" / "probabilities"), "--output", str(output), "--quiet"]
    assert post_processing.main(["--images", str(raw), *rest]) == 0
    for name in SCANS.values():
        assert geometry(output / name) == geometry(CT / name)
        found = pixels(output / name)
        assert 0 < found.sum() < found.size
        # What an untrained network marks lies in the lungs: in air, for the most part.
        assert (pixels(CT / name)[found > 0] < -400).mean() > 0.7

    # In one step, it is the same.
    one = tmp_path / "one step"
    rest = ["--output", str(one), "--lungs", "threshold", "--device", "cpu", "--quiet"]
    assert predict.main([str(raw), "--model-path", str(model), *rest]) == 0
    for name in SCANS.values():
        assert (one / "masks" / name).read_bytes() == (output / name).read_bytes()
    for row in table(one / "summary.csv").values():
        # Lungs of adults, in litres, and what is darker than tissue.
        assert 2 < float(row["lung_ml"]) / 1000 < 8
        assert 0 < float(row["lesion_percent_of_lung"]) < 100
        assert -950 < float(row["lesion_mean_hu"]) < -400
