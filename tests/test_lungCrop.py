import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

import lungCrop
from datasets import lungmask_model
from datasets.cohort import checksum_of_voxels, contents_of
from datasets.crop import LungMaskCrop, recorded
from datasets.lungs import segment_by_threshold
from tests.outputs import same_files, written
from tests.several import noting_who_indexes, on_processes
from tests.utils.test_files import holder
from tests.volumes import geometry, pixels, write, write_dicom
from utils.cli import run
from utils.errors import FolderError

IDS = ("diseased_000", "diseased_001", "healthy_000")


@pytest.fixture
def scans(phantoms, tmp_path):
    return shutil.copytree(phantoms, tmp_path / "scans")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "cohort"


def cropped(scans, output, *arguments, size=(8, 16, 16)):
    options = ["--lungs", "threshold", "--size", *map(str, size), "--quiet", "--output", str(output)]
    return lungCrop.main([*options, str(scans), *arguments])


def test_a_folder_of_scans_becomes_a_cohort(scans, output, capsys):
    assert cropped(scans / "ct", output, "--labels", str(scans / "lesion"), size=(16, 40, 40)) == 0
    assert written(output) == [f"{f}/{i}.nii.gz" for f in ("images", "lesion", "lung") for i in IDS]
    assert "3 of 3 scans are in" in capsys.readouterr().out
    for case_id in IDS:
        image, lung, lesion = (sitk.ReadImage(output / f / f"{case_id}.nii.gz") for f in ("images", "lung", "lesion"))
        assert geometry(image) == geometry(lung) == geometry(lesion)
        assert (image.GetSize(), image.GetPixelID()) == ((40, 40, 16), sitk.sitkFloat32)
        assert 0 <= pixels(image).min() < pixels(image).max() <= 255
        assert set(np.unique(pixels(lung))) == {0, 1}
        assert set(np.unique(pixels(lesion))) == ({0, 1} if case_id.startswith("diseased") else {0})


def test_what_is_done_is_skipped_unless_it_is_of_another_size_or_window_or_lacks_its_lesion(scans, output):
    image, lung = output / "images" / "diseased_000.nii.gz", output / "lung" / "diseased_000.nii.gz"
    labels = ["--labels", str(scans / "lesion")]
    window = [*labels, "--window", "-1000.5", "400"]

    def is_done(*arguments, **size):
        before = image.stat().st_mtime_ns if image.exists() else 0
        assert cropped(scans / "ct", output, *arguments, **size) == 0
        return image.stat().st_mtime_ns > before

    assert is_done()
    assert not is_done()
    assert is_done(*labels)
    assert (output / "lesion" / "diseased_000.nii.gz").is_file()
    assert not is_done(*labels)
    assert is_done(*labels, "--overwrite")
    published, box = pixels(image), pixels(lung)
    assert recorded(image)[0] == (-1250, 250)
    assert is_done(*window)
    assert recorded(image)[0] == (-1000.5, 400)
    # HU inside both windows, from either crop.
    hu = published / 255 * 1500 - 1250
    inside = (hu > -1000) & (hu < 249)
    np.testing.assert_allclose(pixels(image)[inside], (hu[inside] + 1000.5) / 1400.5 * 255, atol=0.05)
    np.testing.assert_array_equal(pixels(lung), box)
    assert not is_done(*window)
    assert is_done(*window, size=(6, 16, 16))
    assert pixels(image).shape == (6, 16, 16)
    with pytest.raises(SystemExit):
        cropped(scans / "ct", output, "--window", "250", "-1250")


@pytest.mark.fault("crops that were copied without")
def test_a_crop_tells_its_ct_wherever_it_goes(scans, output, tmp_path):
    assert cropped(scans / "ct", output) == 0
    assert cropped(scans / "ct", tmp_path / "small", "--window", "-1000.5", "400", size=(6, 12, 12)) == 0
    expected = {case_id: checksum_of_voxels(sitk.ReadImage(str(scans / "ct" / f"{case_id}.nii.gz"))) for case_id in IDS}
    for folder in (output, tmp_path / "small"):
        assert contents_of(folder, IDS) == expected
        shutil.rmtree(folder / "ledger")
        assert contents_of(folder, IDS) == expected
    other = output / "images" / "diseased_000.nii.gz"
    shutil.copy(output / "images" / "healthy_000.nii.gz", other)
    assert contents_of(output, IDS)["diseased_000"] == expected["healthy_000"]
    write(other, np.ones((8, 16, 16), np.float32))
    assert contents_of(output, IDS)["diseased_000"].startswith("crop ")


def test_bad_scans_are_named_and_the_others_are_done(scans, output, capsys):
    (scans / "ct" / "broken.nii.gz").write_bytes(b"no gzip")
    write(scans / "ct" / "water.nii.gz", np.zeros((8, 16, 16), np.int16))
    whole = (scans / "ct" / "healthy_000.nii.gz").read_bytes()
    (scans / "ct" / "healthy_000.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert cropped(scans / "ct", output) == 1
    out = capsys.readouterr().out
    assert "2 of 5 scans are in" in out
    for case_id, reason in (("broken", "cut short"), ("water", "not HU"), ("healthy_000", "cut short")):
        assert reason in next(line for line in out.splitlines() if line.startswith(f"failed: {case_id}: "))
    assert written(output) == [f"{f}/diseased_00{k}.nii.gz" for f in ("images", "lung") for k in (0, 1)]


def test_labels_are_matched_by_name_and_the_rest_is_warned_of(scans, output, capsys):
    labels = scans / "lesion"
    (labels / "diseased_000.nii.gz").rename(labels / "diseased_000_label.nii.gz")
    (labels / "healthy_000.nii.gz").rename(labels / "nobody.nii.gz")
    assert cropped(scans / "ct", output, "--labels", str(labels), "--dry-run") == 0
    assert f"diseased_000.nii.gz, label {labels / 'diseased_000_label.nii.gz'}\n" in capsys.readouterr().out
    assert not output.exists()
    assert cropped(scans / "ct", output, "--labels", str(labels)) == 0
    captured = capsys.readouterr()
    assert "2 with a lesion label" in captured.out
    assert "1 label file(s) match no scan, the first" in captured.err
    assert "1 scan(s) have no label, the first healthy_000" in captured.err
    assert written(output / "lesion") == ["diseased_000.nii.gz", "diseased_001.nii.gz"]


def test_lung_masks_can_be_given(scans, output, capsys):
    (scans / "lung" / "healthy_000.nii.gz").unlink()
    assert cropped(scans / "ct", output, "--lungs", str(scans / "lung")) == 1
    assert "healthy_000.nii.gz: no lung mask of this name" in capsys.readouterr().out
    # The first voxel of the crop is that of the box around the mask.
    box = ndimage.find_objects(1 * (pixels(scans / "lung" / "diseased_000.nii.gz") > 0))[0]
    crop, scan = (sitk.ReadImage(str(path / "diseased_000.nii.gz")) for path in (output / "lung", scans / "ct"))
    assert scan.TransformPhysicalPointToIndex(crop.GetOrigin())[::-1] == tuple(part.start for part in box)


@pytest.mark.fault("output that is input")
@pytest.mark.parametrize(("option", "folder"), [(None, "images"), ("--labels", "lesion"), ("--lungs", "lung")])
def test_crops_are_never_written_over_what_they_are_made_from(scans, option, folder, capsys):
    ct = (scans / "ct").rename(scans / "images") if option is None else scans / "ct"
    file = scans / folder / "diseased_000.nii.gz"
    before = file.read_bytes()
    assert run(lambda: cropped(ct, scans, *([option, str(scans / folder)] if option else []))) == 1
    assert "lies where the crops would be written" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.fault("header of gigabytes", "several series in one study")
def test_a_series_is_picked_and_large_scans_are_refused(scans, tmp_path, ends):
    image = sitk.ReadImage(str(scans / "ct" / "healthy_000.nii.gz"))
    common = {"spacing": image.GetSpacing(), "StudyInstanceUID": "1.2"}
    folder = write_dicom(tmp_path / "series", pixels(image) + 1024, SeriesDescription="Lung", **common)
    write_dicom(folder, np.full((30, 48, 48), 1000, np.int16), name="b", SeriesDescription="Phantom", **common)
    ends(1, lambda: cropped(folder, tmp_path / "a", "--series", "phantom"), "all are the same")
    assert cropped(folder, tmp_path / "a", "--series", "lung") == 0
    said = ends(1, lambda: cropped(folder, tmp_path / "b", "--series", "lung", "--max-voxels", "1000"))
    assert "more than 1000; if that is right, allow it with --max-voxels" in said


@pytest.mark.fault("a CT mapped to 0..255")
def test_scans_mapped_to_0_to_255_are_mapped_back_with_their_window(scans, tmp_path):
    path = scans / "ct" / "healthy_000.nii.gz"
    assert cropped(path, tmp_path / "hu") == 0
    image = sitk.ReadImage(str(path))
    write(path, (sitk.Clamp(image, sitk.sitkFloat32, -1250, 250) + 1250) * (255 / 1500))
    assert cropped(path, tmp_path / "grey") == 1
    assert cropped(path, tmp_path / "grey", "--grey-window", "-1250", "250") == 0
    hu, grey = (pixels(tmp_path / kind / "images" / path.name) for kind in ("hu", "grey"))
    # Where bone was cut off at 250 HU, interpolation gives other values.
    lung = pixels(tmp_path / "hu" / "lung" / path.name) > 0
    assert np.isclose(grey[lung], hu[lung], atol=0.01).mean() > 0.99
    assert cropped(path, tmp_path / "grey", "--grey-window", "-1000", "250") == 0
    assert (pixels(tmp_path / "grey" / "images" / path.name) > grey).mean() > 0.5  # cropped again, as other HU


def test_two_processes_write_the_files_of_one_and_tell_of_every_scan_that_failed(scans, tmp_path, capsys):
    for name in ("a_broken", "z_broken"):
        (scans / "ct" / f"{name}.nii.gz").write_bytes(b"no gzip")
    one, two, logs = (tmp_path / name for name in ("one", "two", "log"))
    assert cropped(scans / "ct", one) == 1
    arguments = [str(scans / "ct"), "--output", str(two), "--lungs", "threshold", "--size", "8", "16", "16", "--quiet"]
    ended = on_processes(2, logs, noting_who_indexes, lungCrop.main, arguments, logs)
    assert [path.name for path in logs.glob("indexed *")] == ["indexed 0"]
    assert [e.code for e in ended] == [1, 1]
    assert ended[1].out == ended[1].err == ""
    assert ended[0].out.replace(str(two), "") == capsys.readouterr().out.replace(str(one), "")
    assert ended[0].out.count("failed: ") == 2
    same_files(two, one)


@pytest.mark.fault("an archive that the first of several processes")
def test_an_archive_that_cannot_be_indexed_is_one_line_of_all_processes(tmp_path):
    arguments = [str(tmp_path / "nowhere"), "--output", str(tmp_path / "out"), "--quiet"]
    ended = on_processes(2, tmp_path / "log", lungCrop.main, arguments)
    assert [e.code for e in ended] == [1, 1]
    (told,) = [e.err for e in ended if e.err]
    assert told.startswith(f"error: {tmp_path / 'nowhere'}: no such file or folder; ")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("results of a replaced scan")
def test_crops_of_other_inputs_or_options_are_made_again_and_others_are_not_read(scans, output, monkeypatch, ends):
    monkeypatch.setattr(lungmask_model, "load_lungmask", lambda *_, **__: segment_by_threshold)
    arguments = (scans / "ct", output, "--labels", str(scans / "lesion"), "--lungs", "lungmask")
    assert cropped(*arguments) == 0
    with monkeypatch.context() as patch:
        patch.setattr(LungMaskCrop, "crop_scan", lambda *_: pytest.fail("nothing is left"))
        patch.setattr(lungmask_model, "load_lungmask", lambda *_, **__: pytest.fail("no weights are needed"))
        assert cropped(*arguments) == 0
    label = scans / "lesion" / "diseased_000.nii.gz"
    write(label, sitk.ReadImage(str(label)) * 0)
    ends(0, lambda: cropped(*arguments), "1 result(s) are redone, the first diseased_000: other label")
    assert pixels(output / "lesion" / "diseased_000.nii.gz").sum() == 0
    said = ends(0, lambda: cropped(*arguments, "--lungs", str(scans / "lung")))
    assert "3 result(s) are redone, the first diseased_000: other lung mask" in said


@pytest.mark.fault("labels that were withdrawn", "scans that were removed or renamed")
def test_crops_follow_what_was_removed_renamed_and_withdrawn(scans, output, ends):
    arguments = (scans / "ct", output, "--labels", str(scans / "lesion"))
    assert cropped(*arguments) == 0
    for folder in ("ct", "lesion"):
        (scans / folder / "diseased_000.nii.gz").rename(scans / folder / "patient_0.nii.gz")
        (scans / folder / "healthy_000.nii.gz").unlink()
    (scans / "lesion" / "diseased_001.nii.gz").unlink()
    ends(0, lambda: cropped(*arguments), "removed the results of 2 scan(s) that are not in the input any more")
    here = [f"{folder}/{i}.nii.gz" for folder in ("images", "lung") for i in ("diseased_001", "patient_0")]
    assert written(output) == sorted([*here, "lesion/patient_0.nii.gz"])


def test_parts_write_beside_each_other_what_one_run_writes(scans, tmp_path):
    assert cropped(scans / "ct", tmp_path / "whole") == 0
    with holder(tmp_path / "parts", (3, 3)):  # another part is at work
        for part in ("1/2", "2/2"):
            assert cropped(scans / "ct", tmp_path / "parts", "--part", part) == 0
        with pytest.raises(FolderError, match="another process is writing here"):
            cropped(scans / "ct", tmp_path / "parts")
    same_files(tmp_path / "parts", tmp_path / "whole")


def test_several_inputs_and_folders_of_labels(scans, output, tmp_path):
    for kind, name in (("ct", "healthy_000"), ("lesion", "diseased_000")):
        (tmp_path / kind).mkdir()
        (scans / kind / f"{name}.nii.gz").rename(tmp_path / kind / f"{name}.nii.gz")
    labels = ["--labels", str(scans / "lesion"), str(tmp_path / "lesion")]
    assert cropped(tmp_path / "ct", output, *map(str, sorted((scans / "ct").iterdir())), *labels) == 0
    assert len(written(output)) == 9


@pytest.mark.fault("a lesion label that lies outside")
def test_a_label_outside_the_lungs_is_refused_unless_it_is_asked_for(scans, output, ends):
    label = scans / "lesion" / "diseased_000.nii.gz"
    lungs = sitk.ReadImage(str(scans / "lung" / "diseased_000.nii.gz"))
    sitk.WriteImage(sitk.Cast(lungs == 0, sitk.sitkUInt8), str(label))
    arguments = [scans / "ct" / "diseased_000.nii.gz", output, "--labels", str(label.parent)]
    ends(1, lambda: cropped(*arguments), "of the lesion mask lie outside the lungs")
    assert not (output / "images" / "diseased_000.nii.gz").exists()
    assert cropped(*arguments, "--lesions-anywhere") == 0
    assert pixels(output / "lesion" / "diseased_000.nii.gz").any()
