#!/bin/sh
# rt-utils makes masks of contours half a voxel too large all around, and contours of masks half a voxel too small.
# Expected: a voxel belongs to a contour if its centre lies inside; contours of a mask enclose its voxels.
# Behaviour: points are rounded to voxels, and every voxel on the line counts as inside: a disc of 6 voxels across has
#   half as many again. Contours of a mask run through the centres of its outermost voxels, so that other readers lose
#   what lies beyond. From mask to contours to mask within rt-utils nothing changes: a test of both ways passes.
# Seen: rt-utils 1.2.7: 168, 936 and 3,468 voxels for four circles of 113, 804 and 3,217 (radius 3, 8 and 16 voxels);
#   plastimatch 1.10.0: 116, 808 and 3,224. A mask of 400 voxels, written by rt-utils, read by plastimatch: 324.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 plastimatch==1.10.0 SimpleITK==2.5.7 opencv-python-headless==4.14.0.94
venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps rt-utils==1.2.7
venv/bin/python - <<'END'
import math
import os
import subprocess

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder


def series(folder):
    """Write a CT of 8 slices of 64 x 64 voxels of 1 mm, 2 mm apart."""
    os.makedirs(folder)
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(8):
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
        d.PixelSpacing, d.SliceThickness = [1, 1], 2
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 64, 64, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = 1, -1024, "HU"
        d.PixelData = np.zeros((64, 64), "<i2").tobytes()
        d.save_as(f"{folder}/{k:02}.dcm", enforce_file_format=True)


series("ct")
square = np.zeros((64, 64, 8), bool)
square[20:30, 20:30, 2:6] = True
structures = RTStructBuilder.create_new("ct")
structures.add_roi(mask=square, name="square")
for radius in (3, 8, 16):  # its contours of the square are replaced by circles of 360 points
    structures.add_roi(mask=square, name=str(radius))
    for contour in structures.ds.ROIContourSequence[-1].ContourSequence:
        angles = np.arange(360) * math.pi / 180
        x, y = 30.2 + radius * np.cos(angles), 31.7 + radius * np.sin(angles)
        points = np.stack([x, y, np.full(360, float(contour.ContourData[2]))], axis=1)
        contour.ContourData, contour.NumberOfContourPoints = points.round(3).ravel().tolist(), 360
structures.save("contours.dcm")

arguments = "--input contours.dcm --referenced-ct ct --output-prefix masks --prefix-format mha"
subprocess.run(["venv/bin/plastimatch", "convert", *arguments.split()], check=True, stdout=subprocess.DEVNULL)
read = RTStructBuilder.create_from("ct", "contours.dcm")
seen = {}
for name in ("3", "8", "16", "square"):
    here = int(read.get_roi_mask_by_name(name).sum())
    there = int((sitk.GetArrayFromImage(sitk.ReadImage(f"masks/{name}.mha")) > 0).sum())
    exact = int(square.sum()) if name == "square" else 4 * math.pi * int(name) ** 2
    print(f"{name}: {exact:.0f} voxels; rt-utils {here}, plastimatch {there}")
    seen[name] = here, there
assert seen == {"3": (168, 116), "8": (936, 808), "16": (3468, 3224), "square": (400, 324)}
END
