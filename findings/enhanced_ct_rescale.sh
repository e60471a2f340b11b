#!/bin/sh
# HU of an Enhanced CT: pydicom returns stored values, SimpleITK scales all frames by the first one's slope.
# Expected: pydicom's apply_modality_lut and SimpleITK's ReadImage give HU, or raise.
# Behaviour: pydicom looks for a rescale at the top level only, where a multi-frame CT has none, and returns the
#   stored values as they are; SimpleITK takes the slope and intercept of the first frame for all. Neither warns.
#   (highdicom and dcm2niix take each frame's own.)
# Seen: pydicom 3.0.2: 248, 224 for -900, -800 HU; SimpleITK 2.5.7: -900, -912; dcm2niix 1.0.20260724: right.
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
from pydicom.pixels import apply_modality_lut

hu = np.broadcast_to((-900.0 + 100 * np.arange(8))[:, None, None], (8, 32, 32))
enhanced("ct.dcm", hu, [0.5, 1] * 4, range(8))
dataset = pydicom.dcmread("ct.dcm")
subprocess.run(["venv/bin/dcm2niix", "-f", "out", "-z", "n", "ct.dcm"], check=True, capture_output=True)
found = {
    "pydicom": apply_modality_lut(dataset.pixel_array, dataset)[:, 0, 0],
    "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage("ct.dcm"))[:, 0, 0],
    "dcm2niix": nib.load("out.nii").get_fdata()[0, 0],
}
print("pydicom", pydicom.__version__, "SimpleITK", sitk.Version_VersionString(), "right:", *hu[:3, 0, 0])
for name, values in found.items():
    print(name, *values[:3])
assert (found["pydicom"][:2] == [248, 224]).all()
assert (found["SimpleITK"][:3] == [-900, -912, -700]).all()
assert (found["dcm2niix"] == hu[:, 0, 0]).all()
END
