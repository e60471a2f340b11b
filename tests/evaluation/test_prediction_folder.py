import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from datasets.io.scan import Scan
from datasets.scans import result_name
from evaluation import prediction_folder
from evaluation.burden import NOTICE, Burden
from evaluation.lesion_segmenter import FullSize, RawScan
from evaluation.prediction_folder import (
    COLUMNS,
    Wanted,
    is_done,
    read_records,
    read_view,
    report_case,
    view_path,
    what_is_left,
    write_report,
    write_results,
    write_summary,
)
from reports.cases import encode_case
from tests.volumes import image_of, pixels
from utils.errors import FolderError, VolumeError
from utils.results import Results

MADE_BY = {"model": "0123456789abcdef01", "threshold": 0.5}


@pytest.fixture
def wanted(tmp_path):
    return Wanted(tmp_path / "out", MADE_BY, report=False)


def row(case_id, lesion_ml=12.0, percent=3.0, hu=-300.0, severity="CT-1"):
    return Burden(lesion_ml, 400.0, percent, 2 * percent, None, hu, severity).row(case_id)


def found(lesion=True, probabilities=False):
    """A mask of one voxel, or of none, of 2 x 3 x 4 (z, y, x)."""
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, 2, 3] = lesion
    return FullSize(image_of(mask), image_of(mask.astype(np.float32)) if probabilities else None, None)


def written(wanted, case_id, scan="scan.nii.gz", one=None, values=None, view=None):
    write_results(values or row(case_id), Scan(case_id, wanted.output / scan), one or found(), view, wanted)


def view_of(case_id):
    hu = np.full((4, 16, 16), -800, np.int16)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[1:3, 2:14, 2:14] = 1
    mask = (lungs > 0) & (np.indices(hu.shape)[2] < 5)
    scan = RawScan(image_of(hu), lungs, None, None, 0.0)
    return encode_case(report_case(scan, FullSize(image_of(mask.astype(np.uint8)), None, None), row(case_id)))


def test_results_are_named_by_the_id_and_recorded_last(wanted, monkeypatch):
    written(replace(wanted, probabilities=True), "a_b_1.2", one=found(probabilities=True))
    mask = wanted.output / "masks" / "a_b_1.2.nii.gz"
    np.testing.assert_array_equal(pixels(mask), pixels(found().mask))
    assert pixels(wanted.output / "probabilities" / "a_b_1.2.nii.gz").dtype == np.float32
    assert read_records(wanted.output) == {
        "a_b_1.2": {"made_by": MADE_BY, "mask": "a_b_1.2.nii.gz", "row": row("a_b_1.2")}
    }

    def full(image, path):
        raise VolumeError(f"{path}: no space")

    # What is written anew is not done until all of it is there.
    monkeypatch.setattr(prediction_folder, "write_volume", full)
    with pytest.raises(VolumeError):
        written(wanted, "a_b_1.2")
    assert mask.is_file()
    assert read_records(wanted.output) == {}


def test_the_segmentation_of_another_model_goes_where_there_is_none(wanted):
    path = wanted.output / "dicom_seg" / "a.dcm"
    with Results(wanted.output).writing("dicom_seg/a", [path], MADE_BY, {}):
        path.parent.mkdir(parents=True)
        path.touch()
    written(wanted, "a", one=found(lesion=False))
    assert not path.exists()


@pytest.mark.fault("own figures, DICOM SEGs, exported networks")
def test_a_segmentation_of_somebody_else_is_kept(wanted):
    path = wanted.output / "dicom_seg" / "a.dcm"
    path.parent.mkdir(parents=True)
    path.write_text("an expert's")
    with pytest.raises(FolderError, match=r"a\.dcm: was not written by this command, and is not replaced"):
        written(wanted, "a")
    assert path.read_text() == "an expert's"
    assert not (wanted.output / "masks").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"made_by": {}, "files": {}}',
        '{"made_by": {}, "files": {}, "facts": {"mask": "a.nii.gz"}}',
        '{"made_by": {}, "files": {}, "facts": {"mask": "a.nii.gz", "row": {"id": "a"}}}',
        '{"made_by": {}, "files": {}, "facts": {"mask": 1, "row": {}}}',
    ],
)
def test_a_record_that_is_damaged_is_none(wanted, text):
    written(wanted, "a")
    written(wanted, "b")
    (wanted.output / ".results" / "a.json").write_text(text)
    assert list(read_records(wanted.output)) == ["b"]
    scans = {case_id: Scan(case_id, wanted.output / "scan.nii.gz") for case_id in ("a", "b")}
    assert what_is_left(scans, wanted, overwrite=False)[1] == ["a"]


def test_a_record_without_its_mask_is_none(wanted):
    written(wanted, "a")
    (wanted.output / "masks" / "a.nii.gz").unlink()
    assert read_records(wanted.output) == {}


def test_what_is_left_is_what_was_made_otherwise_or_not_at_all(wanted):
    for case_id in ("a", "b"):
        written(wanted, case_id)
    written(replace(wanted, made_by={**MADE_BY, "threshold": 0.4}), "c")
    scans = {case_id: Scan(case_id, wanted.output / "scan.nii.gz") for case_id in ("d", "c", "b", "a")}
    records, left = what_is_left(scans, wanted, overwrite=False)
    assert list(records) == ["a", "b", "c"]
    assert left == ["d", "c"]
    assert what_is_left(scans, wanted, overwrite=True)[1] == ["d", "c", "b", "a"]


def test_done_is_what_has_all_that_is_asked_for(wanted, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    file = tmp_path / "scan.nrrd"
    file.touch()

    def done(scan, **asked):
        return is_done(read_records(wanted.output).get("a"), Scan("a", scan), replace(wanted, **asked))

    assert not done(file)
    written(wanted, "a", scan=file)
    assert done(file)
    assert not done(file, probabilities=True)
    assert not done(file, report=True)
    # Only series have a DICOM SEG, and of those the ones with a lesion.
    assert done(file, dicom_seg=True)
    assert not done(series, dicom_seg=True)
    written(wanted, "a", scan=series, values=row("a", lesion_ml=0.0))
    assert done(series, dicom_seg=True)

    asked = replace(wanted, probabilities=True, report=True)
    written(asked, "a", scan=file, one=found(probabilities=True), view=view_of("a"))
    assert (wanted.output / "probabilities" / result_name("a", file)).name == "a.nrrd"
    assert done(file, probabilities=True, report=True)
    view_path(wanted.output, "a").write_text("{}")
    assert read_view(wanted.output, "a") is None
    assert not done(file, report=True)
    assert done(file, probabilities=True)


def test_the_summary_has_rows_means_and_what_failed(tmp_path):
    rows = {"b": row("b", 10.0, 1.0), "a": row("a", 4.0, 3.0), "c": row("c", 1.0, 2.0, None, "CT-0")}
    write_summary(rows, {"z": "cut short"}, MADE_BY, tmp_path / "S.pth", tmp_path)
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert table[0] == list(COLUMNS)
    assert table[1] == ["a", "4", "400", "3", "6", "", "-300", "CT-1"]
    assert [line[0] for line in table[1:]] == ["a", "b", "c"]
    assert table[3][6] == ""
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["lesion_ml"] == pytest.approx({"mean": 5.0, "std": 14**0.5})
    assert summary["lesion_mean_hu"] == {"mean": -300.0, "std": 0.0}
    assert summary["left_lung_percent"] is None
    assert (summary["notice"], summary["model"]) == (NOTICE, str(tmp_path / "S.pth"))
    assert (summary["scans"], summary["severity"]) == (3, {"CT-0": 1, "CT-1": 2})
    assert summary["failed"] == {"z": "cut short"}
    assert summary["made_by"] == MADE_BY
    assert summary["rows"] == [rows["a"], rows["b"], rows["c"]]


def test_the_report_shows_the_scans_of_the_summary_in_their_order(wanted):
    asked = replace(wanted, report=True)
    for case_id in ("case_b", "case_a", "case_c"):
        written(asked, case_id, view=view_of(case_id))
    write_report({"case_b": row("case_b"), "case_a": row("case_a")}, wanted.output, {"Model": "S.pth"})
    page = (wanted.output / "report.html").read_text(encoding="utf-8")
    assert 0 < page.index("case_a") < page.index("case_b")
    assert "case_c" not in page
    assert "S.pth" in page
    assert NOTICE in page
