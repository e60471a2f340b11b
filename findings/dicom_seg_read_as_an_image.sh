#!/bin/sh
# SimpleITK reads a DICOM SEG with spacing 1, without its empty slices, and merges segments.
# Expected: a label map on the grid of the CT, or an error.
# Behaviour: of 16 slices the five with lesion remain, stacked as if they followed each other, in 0 and 255, and the
#   spacing is 1, 1, 1 mm: half of the voxels' volume becomes twice as much here, more or less with other spacings.
#   (highdicom reads it right.)
# Seen: SimpleITK 2.5.7, highdicom 0.28.2: size (32, 32, 5), 0.116 ml for 0.058 ml; two segments give the same image
#   as one.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pydicom==3.0.2 SimpleITK==2.5.7 highdicom==0.28.2
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


import highdicom as hd
import SimpleITK as sitk
from pydicom.sr.codedict import codes

series("ct", np.full((16, 32, 32), -800.0), [1] * 16)
slices = [pydicom.dcmread(f"ct/{k:02}.dcm") for k in range(16)]
mask = np.zeros((16, 32, 32), np.uint8)
mask[5:9, 10:15, 10:15] = 1  # 100 voxels
mask[12, 20:24, 20:24] = 2  # 16 voxels
by = hd.AlgorithmIdentificationSequence("example", codes.cid7162.ArtificialIntelligence, "1")
read = []
for labels in ((mask > 0).astype(np.uint8), mask):
    segments = [
        hd.seg.SegmentDescription(n, f"{n}", codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", by)
        for n in range(1, labels.max() + 1)
    ]
    seg = hd.seg.Segmentation(
        slices, labels, "BINARY", segments, hd.UID(), 1, hd.UID(), 1, "example", "example", "1", "1"
    )
    seg.save_as("seg.dcm")
    image = sitk.ReadImage("seg.dcm")
    values = sitk.GetArrayFromImage(image)
    ml = (values > 0).sum() * np.prod(image.GetSpacing()) / 1000
    read.append((image.GetSize(), image.GetSpacing(), sorted({int(v) for v in values.flat}), round(float(ml), 3)))
    print("SimpleITK", sitk.Version_VersionString(), *read[-1], f"right: {(mask > 0).sum() * 0.5 / 1000} ml")
assert read == [((32, 32, 5), (1.0, 1.0, 1.0), [0, 255], 0.116)] * 2
END
