#!/bin/sh
# Frames of an Enhanced CT in any order: SimpleITK keeps it, with spacing 1; dcm2niix has another spacing.
# Expected: frames are placed by their ImagePositionPatient, or an error says that they are not in order.
# Behaviour: if the frames do not follow each other through the patient, SimpleITK leaves the slices in the file's
#   order, with a spacing of 1, 1, 1 mm instead of the header's. dcm2niix sorts them, and takes the distance of the
#   file's first and last frame for the whole length: right if these are the two ends, as in interleaved scans,
#   wrong otherwise. Neither warns. (highdicom is right.)
# Seen: SimpleITK 2.5.7: -600, -900, -400 HU for -900, -800, -700, spacing (1.0, 1.0, 1.0) for (0.5, 0.5, 2.0);
#   dcm2niix 1.0.20260724: the slices in order, 0.857 mm apart.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 SimpleITK==2.5.7 dcm2niix==1.0.20260724 nibabel==5.4.2
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


def enhanced(path, hu, slopes, order):
    """Write hu, (z, y, x), as one Enhanced CT: slices 2 mm apart, frames in the given order of slices."""
    d = image(EnhancedCTImageStorage, hu.shape[1])
    d.ImageType, d.InstanceNumber, d.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 1, len(order)
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence, planes = [shared], [], []
    for k in order:
        frame, place, rescale, content = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * k]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slopes[k], -1024, "HU"
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, k + 1]
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [rescale]
        frame.FrameContentSequence = [content]
        d.PerFrameFunctionalGroupsSequence.append(frame)
        planes.append(np.rint((hu[k] + 1024) / slopes[k]).astype("<i2"))
    d.PixelData = np.stack(planes).tobytes()
    d.save_as(path, enforce_file_format=True)


import subprocess

import nibabel as nib
import SimpleITK as sitk

hu = np.broadcast_to((-900.0 + 100 * np.arange(8))[:, None, None], (8, 32, 32))
found = {}
for name, order in (("sorted", range(8)), ("mixed", [3, 0, 5, 1, 4, 2, 7, 6])):
    enhanced(f"{name}.dcm", hu, [1] * 8, order)
    read = sitk.ReadImage(f"{name}.dcm")
    found["SimpleITK", name] = read.GetSpacing(), sitk.GetArrayFromImage(read)[:3, 0, 0].tolist()
    subprocess.run(["venv/bin/dcm2niix", "-f", name, "-z", "n", f"{name}.dcm"], check=True, capture_output=True)
    converted = nib.load(f"{name}.nii")
    spacing = tuple(round(float(step), 3) for step in converted.header.get_zooms())
    found["dcm2niix", name] = spacing, converted.get_fdata()[0, 0, :3].tolist()
print("SimpleITK", sitk.Version_VersionString())
for key, value in found.items():
    print(*key, *value)
right = (0.5, 0.5, 2.0), [-900, -800, -700]
assert found["SimpleITK", "sorted"] == found["dcm2niix", "sorted"] == right
assert found["SimpleITK", "mixed"] == ((1.0, 1.0, 1.0), [-600, -900, -400])
assert found["dcm2niix", "mixed"] == ((0.5, 0.5, 0.857), [-900, -800, -700])
END
