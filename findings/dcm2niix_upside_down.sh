#!/bin/sh
# dcm2niix turns an Enhanced CT upside down, shuffles its slices or squeezes them, by the order of its frames.
# Expected: every slice is placed by its ImagePositionPatient.
# Behaviour: slices are stacked by their dimension index, whatever it counts by DimensionIndexSequence, and unless
#   InStackPositionNumber is given, spacing and direction are those from the file's first frame to its last. Frames from
#   the apex down with an index of positions from the base up: upside down. An index of the times of acquisition of
#   interleaved slices: shuffled. The file starting in the middle: squeezed. No warning, exit code 0.
# Seen: dcm2niix 1.0.20260724: the apex at 0 mm, where the base is; 0, 4, 8, ... mm for 0, 2, 4, ...; slices 0.29 mm
#   apart instead of 2 mm. With an index of InStackPositionNumber all three are right.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 dcm2niix==1.0.20260724 nibabel==5.4.2
venv/bin/python - <<'END'
import re
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def item(**tags):
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return [dataset]


def enhanced(path, order, index):
    """Write an Enhanced CT of slices 2 mm apart, slice k (from 0) of k HU, frames in the given order of slices.

    `index` is the attribute that the dimension index counts: positions, from the base, or times.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID, organisation = generate_uid(), generate_uid()
    frames = []
    for frame, k in enumerate(order):
        content = item(
            FrameAcquisitionDateTime=f"202001011200{frame:02}",
            FrameReferenceDateTime=f"202001011200{frame:02}",
            FrameAcquisitionDuration=500.0,
            DimensionIndexValues=[frame + 1 if index == "FrameAcquisitionDateTime" else k + 1],
        )
        if index == "InStackPositionNumber":
            content[0].StackID, content[0].InStackPositionNumber = "1", k + 1
        place = item(ImagePositionPatient=[0, 0, 2 * k])
        frames += item(PlanePositionSequence=place, FrameContentSequence=content)
    (d,) = item(
        **dict(SOPClassUID=EnhancedCTImageStorage, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, Modality="CT"),
        **dict(StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(), FrameOfReferenceUID=generate_uid()),
        **dict(PatientName="A^B", PatientID="1", PatientBirthDate="", PatientSex="", PatientPosition="HFS"),
        **dict(StudyDate="20200101", StudyTime="120000", StudyID="1", AccessionNumber="", ReferringPhysicianName=""),
        **dict(ContentDate="20200101", ContentTime="120000", AcquisitionDateTime="20200101120000", Manufacturer="A"),
        **dict(SeriesNumber=1, InstanceNumber=1, PositionReferenceIndicator="", NumberOfFrames=len(order)),
        **dict(ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], SamplesPerPixel=1, Rows=16, Columns=16),
        **dict(PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15),
        PixelRepresentation=1,
        DimensionOrganizationSequence=item(DimensionOrganizationUID=organisation),
        DimensionIndexSequence=item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=tag_for_keyword(index),
            FunctionalGroupPointer=tag_for_keyword(
                "PlanePositionSequence" if index == "ImagePositionPatient" else "FrameContentSequence"
            ),
        ),
        SharedFunctionalGroupsSequence=item(
            PixelMeasuresSequence=item(PixelSpacing=[0.5, 0.5], SliceThickness=2),
            PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU"),
        ),
        PerFrameFunctionalGroupsSequence=frames,
        PixelData=np.stack([np.full((16, 16), k, "<i2") for k in order]).tobytes(),
    )
    d.file_meta = meta
    path.parent.mkdir()
    d.save_as(path, enforce_file_format=True)


def places(number, order, index):
    """The place of each slice in the file that dcm2niix makes, in mm."""
    folder = Path(str(number))
    enhanced(folder / "ct.dcm", order, index)
    said = subprocess.run(["venv/bin/dcm2niix", "-f", "ct", "-z", "n", folder], capture_output=True, text=True)
    assert said.returncode == 0
    assert not re.search("order|position|index|slice", said.stdout.split("Found 1 DICOM")[1], re.IGNORECASE)
    (path,) = folder.glob("*.nii")
    image = nib.load(path)
    slices = np.asarray(image.dataobj)[0, 0].round().astype(int)
    height = image.affine[2, 3] + image.affine[2, 2] * np.argsort(slices)
    print(f"frames {order}, index of {index}: slices 0 to 7 at {height.round(2).tolist()} mm")
    return height.round(2).tolist()


upwards, halves = list(range(8)), [4, 5, 6, 7, 0, 1, 2, 3]
downwards, interleaved = upwards[::-1], upwards[::2] + upwards[1::2]
right = [2.0 * k for k in upwards]
for number, order in enumerate((upwards, downwards, interleaved, halves)):
    assert places(number, order, "InStackPositionNumber") == right
assert places(4, upwards, "ImagePositionPatient") == right
assert places(5, downwards, "ImagePositionPatient") == right[::-1]
assert places(6, interleaved, "FrameAcquisitionDateTime") == [0, 8, 2, 10, 4, 12, 6, 14]
squeezed = places(7, halves, "ImagePositionPatient")
assert round(abs(squeezed[1] - squeezed[0]), 2) == 0.29
END
