#!/bin/sh
# dcm2niix turns a series with a missing slice into two files, of which the plain name is the wrong one.
# Expected: a warning, and one file with evenly spaced slices, or none.
# Behaviour: it writes the slices as if they were evenly spaced under the name that was asked for, a lesion behind
#   the gap being one slice too low, and evenly resampled ones under NAME_Eq_1. Whoever takes NAME.nii takes the
#   wrong file, whoever globs *.nii has the patient twice. It warns, and exits with 0.
# Seen: dcm2niix 1.0.20260724: ct.nii of 15 slices, 2 mm apart (28 mm from first to last instead of 30), and
#   ct_Eq_1.nii of 16.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 dcm2niix==1.0.20260724 nibabel==5.4.2
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


import subprocess

import nibabel as nib

series("ct", np.full((16, 32, 32), -800.0), [1] * 16)
os.remove("ct/07.dcm")
said = subprocess.run(["venv/bin/dcm2niix", "-o", ".", "-f", "ct", "-z", "n", "ct"], capture_output=True, text=True)
files = sorted(name for name in os.listdir() if name.endswith(".nii"))
shapes = {name: (nib.load(name).shape[2], float(nib.load(name).header.get_zooms()[2])) for name in files}
print("exit code", said.returncode, "slices and spacing:", shapes)
assert said.returncode == 0
assert "Missing images?" in said.stdout
assert shapes == {"ct.nii": (15, 2.0), "ct_Eq_1.nii": (16, 2.0)}
END
