import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from datasets.crop import LungMaskCrop
from datasets.lungs import with_sides
from datasets.phantom.make import write_phantoms
from datasets.plausibility import check_label_values, check_lesion, check_lungs, label_sides
from datasets.volumes import Reading, read_labels
from tests.volumes import pixels, write
from utils.errors import VolumeError


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Folder of a diseased phantom in LPS order; its CT, lungs (1 right, 2 left), lesion and spacing (z, y, x)."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantoms(folder, 0, 1, (32, 64, 64))
    ct, lungs, lesion = (
        sitk.ReadImage(str(folder / name / "diseased_000.nii.gz")) for name in ("ct", "lung", "lesion")
    )
    assert ct.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    return folder, pixels(ct), pixels(lungs), pixels(lesion), ct.GetSpacing()[::-1]


def messages(caplog):
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_a_plausible_scan_has_no_finding(phantom, caplog):
    _, ct, lungs, lesion, spacing = phantom
    for labels in (lungs, np.zeros_like(lungs)):
        check_lungs("scan", ct, labels, spacing)
    check_lesion("scan", lesion, lungs, [1])
    check_lesion("scan", np.zeros_like(lesion), lungs)
    assert label_sides("scan", lungs) is lungs
    assert messages(caplog) == []


@pytest.mark.fault("a given lung mask with 1 left")
def test_sides_follow_the_geometry(phantom, caplog):
    _, _, lungs, lesion, _ = phantom
    swapped = np.choose(lungs, [0, 2, 1]).astype(np.uint8)
    # Infection as a third label lies in the lung that it replaced.
    infection = (lesion > 0) & (lungs > 0)
    assert infection.any()
    for labels, count in ((swapped, 1), (np.where(infection, 3, swapped), 1), (np.where(infection, 3, lungs), 0)):
        np.testing.assert_array_equal(label_sides("scan", labels.astype(np.uint8)), lungs)
        found = messages(caplog)
        assert len(found) == count
        assert all("sides follow the geometry" in message for message in found)


@pytest.mark.fault("a lung mask with 1 lung and 2 infection")
def test_labels_that_are_no_sides(phantom, caplog):
    folder, _, lungs, lesion, _ = phantom
    ct = sitk.ReadImage(str(folder / "ct" / "diseased_000.nii.gz"))
    infection = np.where((lesion > 0) & (lungs > 0), 2, lungs > 0)
    upper = np.arange(len(lungs))[:, None, None] >= np.median(np.nonzero(lungs)[0])
    lobes = np.where(lungs == 1, 3, np.where(upper, 1, 2) * (lungs == 2))
    for labels in (infection, lobes):
        np.testing.assert_array_equal(with_sides(labels.astype(np.uint8), ct, "scan"), lungs)
        assert messages(caplog) == [
            "scan: labels 1 and 2 of the lung mask are not right and left; sides are told by shape"
        ]


@pytest.mark.fault("lungs of more than 12 l")
def test_lungs_of_more_than_12_litres_are_refused(phantom):
    _, ct, lungs, _, spacing = phantom
    litres = np.count_nonzero(lungs) * np.prod(spacing) / 1e6
    assert 3 < litres < 8
    check_lungs("scan", ct, lungs, np.multiply(spacing, (11.9 / litres) ** (1 / 3)))
    with pytest.raises(VolumeError, match=f"scan: lungs of {8 * litres:.1f} l are impossible"):
        check_lungs("scan", ct, lungs, np.multiply(spacing, 2))


@pytest.mark.fault("a lesion label that lies outside")
@pytest.mark.parametrize("share", [0, 19, 20, 79, 80, 100])
def test_lesions_outside_the_lungs(phantom, caplog, share):
    _, _, lungs, _, _ = phantom
    inside, outside = np.argwhere(lungs > 0)[:100], np.argwhere(lungs == 0)[:100]
    lesion = np.zeros_like(lungs)
    lesion[tuple(np.concatenate([outside[:share], inside[: 100 - share]]).T)] = 1
    said = f"scan: {share}% of the lesion mask lie outside the lungs"
    if share >= 80:
        with pytest.raises(VolumeError, match=said):
            check_lesion("scan", lesion, lungs)
    check_lesion("scan", lesion, lungs, accept_outside=True)
    assert [message.startswith(said) and "--lungs lungmask" in message for message in messages(caplog)] == [True] * (
        share >= 20
    )


@pytest.mark.fault("lungs or lesions that are drawn")
@pytest.mark.parametrize("step", [1, 2, 5])
def test_masks_drawn_in_some_slices(phantom, caplog, step):
    _, ct, lungs, lesion, spacing = phantom
    drawn = np.arange(len(lungs))[:, None, None] % step == 0
    check_lesion("scan", lesion * drawn, lungs)
    assert ["no two slices" in message for message in messages(caplog)] == [True] * (step > 1)
    if step == 1:
        check_lungs("scan", ct, lungs, spacing)
    else:
        with pytest.raises(VolumeError, match="scan: the lung mask has no two slices that are neighbours"):
            check_lungs("scan", ct, lungs * drawn, spacing)


@pytest.mark.fault("a lesion label that covers")
def test_a_lesion_mask_that_is_that_of_the_lungs(phantom, caplog):
    check_lesion("scan", phantom[2], phantom[2], [1, 2])
    assert "(labels 1, 2) covers 100% of the lungs" in caplog.text


@pytest.mark.fault("a CT that was erased")
@pytest.mark.parametrize("value", [0, -1024])
def test_a_ct_that_was_erased_outside_the_lungs(phantom, caplog, value):
    _, ct, lungs, _, spacing = phantom
    check_lungs("scan", np.where(lungs > 0, ct, value), lungs, spacing)
    assert f"scan: 100% of what surrounds the lungs is {value} HU" in caplog.text


@pytest.mark.fault("a given lung mask that is flipped")
def test_lungs_without_gas(tmp_path, phantom, caplog):
    _, ct, lungs, *_ = phantom

    def crop(ct, lungs, **reading):
        cropper = LungMaskCrop(size=(16, 32, 32), reading=Reading(**reading))
        cropper.crop(write(tmp_path / "scan.nii.gz", ct), None, write(tmp_path / "lungs.nii.gz", lungs))
        return [message for message in messages(caplog) if "the lungs have -1200 to -300 HU" in message]

    assert crop(ct, lungs) == []
    for moved in (lungs[::-1], lungs[:, ::-1], np.roll(lungs, 8, axis=1)):
        share = np.mean(ct[moved > 0] < -300)
        (message,) = crop(ct, moved)
        assert f"scan.nii.gz: {share:.0%} of" in message
    # An intercept that was lost behind a padding of -2000 or applied twice, and a wrong sign.
    padded = np.where(np.arange(ct.shape[2]) < 3, -2000, ct + 1024)
    for wrong in (padded, ct - 1024, -ct):
        with pytest.raises(VolumeError, match=r"is the CT in HU.* --airless-lungs keeps it"):
            crop(wrong.astype(np.int16), lungs)
    (message,) = crop(wrong.astype(np.int16), lungs, airless_lungs=True)
    assert "--airless-lungs" not in message


@pytest.mark.fault("a lung mask that ends within")
def test_a_lung_mask_that_ends_within_the_lungs(phantom, caplog):
    _, ct, lungs, _, spacing = phantom
    check_lungs("scan", ct, lungs, spacing)
    assert caplog.text == ""
    middle = len(ct) // 2
    for half, end in ((np.s_[:middle], middle), (np.s_[middle:], middle - 1)):
        part = lungs.copy()
        part[half] = 0
        caplog.clear()
        check_lungs("scan", ct, part, spacing)
        assert messages(caplog) == [f"scan: the lung mask ends at slice {end}, and the lungs do not; is it complete?"]
    caplog.clear()
    check_lungs("scan", ct[:middle], lungs[:middle], spacing)  # there the CT ends, too
    assert caplog.text == ""


@pytest.mark.fault("label 255 beside others")
@pytest.mark.parametrize(("labels", "count"), [([255], 0), ([1, 2], 0), ([1, 255], 1)])
def test_label_255_beside_others_may_mark_what_is_unknown(phantom, caplog, labels, count):
    _, _, lungs, lesion, _ = phantom
    check_lesion("scan", lesion, lungs, labels)
    assert sum("scan: label 255 counts as lesion" in message for message in messages(caplog)) == count


@pytest.mark.fault("probabilities stored as whole")
def test_probabilities_as_bytes_are_no_labels(tmp_path, phantom):
    _, _, lungs, lesion, _ = phantom
    probability = ndimage.gaussian_filter(lesion.astype(float), 1.5)
    path = write(tmp_path / "mask.nii.gz", np.rint(255 * probability).astype(np.uint8))
    with pytest.raises(VolumeError, match=r"mask\.nii\.gz: \d+ values up to \d+ .* are no labels"):
        read_labels(path)
    # Labels of many regions: blocks that touch, lungs, and 200 lesions of a voxel each.
    z, y, x = np.indices(lungs.shape)
    blocks = (1 + z // 8 + 4 * (y // 16) + 16 * (x // 16)).astype(np.uint8)
    single = np.zeros_like(lungs)
    single.reshape(-1)[::331][:200] = np.arange(1, 201)
    for labels in (blocks, lungs, lesion, single, np.zeros_like(lungs)):
        check_label_values("mask", labels)


@pytest.mark.fault("a lesion that all voxels")
def test_a_lesion_that_resizing_would_lose_stays(tmp_path, phantom):
    # Single voxels, of which the nearest voxels of the crop keep one in eight or none.
    _, ct, lungs, _, _ = phantom
    rng = np.random.default_rng(0)
    cropper = LungMaskCrop(size=(16, 32, 32))
    scan, given = write(tmp_path / "scan.nii.gz", ct), write(tmp_path / "lungs.nii.gz", lungs)
    for place in rng.permutation(np.argwhere(lungs > 0))[:25]:
        lesion = np.zeros_like(lungs)
        lesion[tuple(place)] = 1
        *_, crop = cropper.crop(scan, write(tmp_path / "lesion.nii.gz", lesion), given)
        assert pixels(crop).sum() >= 1
        # Within half a voxel of the crop, along each axis.
        (found,) = np.argwhere(pixels(crop))[:1]
        point = sitk.ReadImage(str(scan)).TransformIndexToPhysicalPoint(place[::-1].tolist())
        distance = np.subtract(crop.TransformIndexToPhysicalPoint(found[::-1].tolist()), point)
        assert (np.abs(distance) <= 0.5 * np.array(crop.GetSpacing()) + 1e-3).all()
