#!/bin/sh
# plastimatch reads the air of a CT of signed 12-bit values as bone.
# Expected: stored values are taken from BitsStored bits and their sign from HighBit, as PixelRepresentation 1 says.
# Behaviour: all 16 allocated bits are taken: negative values whose sign is not repeated in the unused bits become
#   large positive ones. No warning, exit code 0. pydicom, SimpleITK and dcm2niix extend the sign.
# Seen: plastimatch 1.10.0: 3296 HU for -800 HU, 40 HU right; pydicom 3.0.2 and SimpleITK 2.5.7: right.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 plastimatch==1.10.0 SimpleITK==2.5.7
venv/bin/python - <<'END'
import os
import subprocess

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

hu = np.full((16, 16), 40)
hu[4:12, 4:12] = -800
os.mkdir("ct")
study, uid, frame = generate_uid(), generate_uid(), generate_uid()
for k in range(4):
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = CTImageStorage
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "A^B", "1", "", ""
    d.StudyDate, d.StudyTime, d.StudyID, d.AccessionNumber = "20200101", "120000", "1", ""
    d.Modality, d.Manufacturer, d.ReferringPhysicianName, d.PositionReferenceIndicator = "CT", "", "", ""
    d.ImageType, d.SeriesNumber, d.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, k + 1
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, uid, frame
    d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
    d.PixelSpacing, d.SliceThickness = [0.5, 0.5], 2
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 16, 16, 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 1
    d.RescaleSlope, d.RescaleIntercept, d.RescaleType = 1, 0, "HU"
    d.PixelData = (hu & 0xFFF).astype("<u2").tobytes()
    d.save_as(f"ct/{k}.dcm", enforce_file_format=True)

said = subprocess.run(
    ["venv/bin/plastimatch", "convert", "--input", "ct", "--output-img", "ct.mha"], capture_output=True, text=True
)
assert said.returncode == 0
assert "warn" not in (said.stdout + said.stderr).lower()
names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames("ct")
found = {
    "plastimatch": sitk.GetArrayFromImage(sitk.ReadImage("ct.mha"))[0],
    "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage(names))[0],
    "pydicom": pydicom.dcmread("ct/0.dcm").pixel_array,
}
print({name: (int(values[0, 0]), int(values[8, 8])) for name, values in found.items()})
assert (found["plastimatch"] == np.where(hu < 0, hu + 4096, hu)).all()
assert (found["SimpleITK"] == hu).all()
assert (found["pydicom"] == hu).all()
END
