#!/bin/sh
# SimpleITK rounds a DICOM series to whole HU if the first slice has a whole slope.
# Expected: a series in which some slices are scaled by 0.5 becomes a floating-point image.
# Behaviour: the reader takes the type of the first slice: with slope 1 there and 0.5 in the others, HU are cut to
#   integers toward zero, in silence; the other way round they are kept.
# Seen: SimpleITK 2.5.7: 32-bit signed integer, -799 for -799.5 HU; with the order of slopes reversed 64-bit float,
#   -799.5.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 SimpleITK==2.5.7
venv/bin/python - <<'END'
import os

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def image(sop_class, size):
    """A CT image object without pixels and place: size x size pixels of 0.5 mm."""
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = sop_class
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "A^B", "1", "", ""
    d.StudyDate, d.StudyTime, d.StudyID, d.AccessionNumber, d.ReferringPhysicianName = "20200101", "120000", "1", "", ""
    d.Modality, d.Manufacturer, d.SeriesNumber, d.PositionReferenceIndicator = "CT", "", 1, ""
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = size, size, 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    return d


def series(folder, hu, slopes):
    """Write hu, (z, y, x), one file a slice 2 mm apart; stored value = (HU + 1024) / slope."""
    os.makedirs(folder)
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    for k, (plane, slope) in enumerate(zip(hu, slopes)):
        d = image(CTImageStorage, plane.shape[0])
        d.ImageType, d.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, uid, frame
        d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = [0.5, 0.5], 2
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = slope, -1024, "HU"
        d.PixelData = np.rint((plane + 1024) / slope).astype("<i2").tobytes()
        d.save_as(f"{folder}/{k:02}.dcm", enforce_file_format=True)


import SimpleITK as sitk

hu = np.broadcast_to((-899.5 + 100 * np.arange(8))[:, None, None], (8, 32, 32)).copy()
hu[0] = hu[-1] = -900
found = []
for folder, slopes in (("whole_first", [1] + [0.5] * 7), ("half_first", [0.5] * 7 + [1])):
    series(folder, hu, slopes)
    read = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder))
    found.append((read.GetPixelIDTypeAsString(), float(sitk.GetArrayFromImage(read)[1, 0, 0])))
    print("SimpleITK", sitk.Version_VersionString(), folder, *found[-1], "right: -799.5")
assert found == [("32-bit signed integer", -799.0), ("64-bit float", -799.5)]
END
