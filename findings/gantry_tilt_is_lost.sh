#!/bin/sh
# A gantry tilt is lost by SimpleITK, and by dcm2niix for CTs of 16 unsigned bits.
# Expected: sheared axes, a straightened volume, or an error; as dcm2niix straightens CTs of 12 or of signed bits, and
#   dicom2nifti refuses them.
# Behaviour: SimpleITK takes right angles without a word, and the step along the tilted table as spacing: volumes are
#   too large by 1 / cos, and the place of a voxel shifts by tan times its height. dcm2niix warns, exits with 0, and
#   writes one file with straight axes for 16 unsigned bits; of 12 bits, it writes that file and a straightened _Tilt_1.
# Seen: SimpleITK 2.5.7, dcm2niix 1.0.20260724, 15 degrees, 32 slices 5 mm apart: spacing 5.18 mm (volumes 3.5 % too
#   large) and 5 mm; the highest slice lies 41.5 mm too far forward in both.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 dcm2niix==1.0.20260724 nibabel==5.4.2 SimpleITK==2.5.7
venv/bin/python - <<'END'
import os
import subprocess

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STEP, LAST, TILT = 5.0, 31, np.radians(15)
SHIFT = STEP * np.tan(TILT)  # mm towards the back, from slice to slice


def series(folder, bits):
    """Write an upright CT with a tilted gantry, one file a slice."""
    os.makedirs(folder)
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(LAST + 1):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, uid, frame
        d.Modality, d.Manufacturer, d.SeriesNumber, d.InstanceNumber = "CT", "SIEMENS", 1, k + 1
        d.ImageType, d.PatientPosition, d.GantryDetectorTilt = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS", 15
        d.ImagePositionPatient = [0, f"{k * SHIFT:.6f}", k * STEP]
        d.ImageOrientationPatient, d.PixelSpacing, d.SliceThickness = [1, 0, 0, 0, 1, 0], [1, 1], STEP
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = 1, -1024, "HU"
        d.set_pixel_data(np.full((32, 32), 224 + k, np.uint16), "MONOCHROME2", bits)
        d.save_as(f"{folder}/{k:02}.dcm", enforce_file_format=True)


files = {}
for bits in (12, 16):
    series(f"ct{bits}", bits)
    command = ["venv/bin/dcm2niix", "-o", ".", "-f", f"ct{bits}", "-z", "n", f"ct{bits}"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0
    assert "gantry tilt" in said.stdout
    files[bits] = sorted(name for name in os.listdir() if name.startswith(f"ct{bits}") and name.endswith(".nii"))
print("dcm2niix, 12 and 16 bits:", files)
assert files == {12: ["ct12.nii", "ct12_Tilt_1.nii"], 16: ["ct16.nii"]}

reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames("ct16"))
ct = reader.Execute()
affine = nib.load("ct16.nii").affine
true = np.array([0, LAST * SHIFT, LAST * STEP])  # of the first pixel of the highest slice, LPS
by_simpleitk = np.array(ct.TransformIndexToPhysicalPoint((0, 0, LAST)))
by_dcm2niix = (affine @ [0, 31, LAST, 1])[:3] * (-1, -1, 1)  # it turns rows upside down
for name, place, step in (("SimpleITK", by_simpleitk, ct.GetSpacing()[2]), ("dcm2niix", by_dcm2niix, affine[2, 2])):
    forward = true[1] - place[1]
    print(f"{name}: spacing {step:.2f} mm; the highest slice lies {forward:.1f} mm too far forward")
    assert abs(forward - LAST * SHIFT) < 0.01
assert ct.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
assert abs(ct.GetSpacing()[2] - STEP / np.cos(TILT)) < 1e-3
assert np.abs(affine[:3, :3] - np.diag(affine.diagonal()[:3])).max() < 1e-3
END
