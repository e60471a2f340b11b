#!/bin/sh
# highdicom's volume of an axial CT begins at the apex, arrays of pydicom and SimpleITK at the base.
# Expected: slices ascend along the normal of the image plane, as in SimpleITK's array of the same file, and in the
#   file.
# Behaviour: highdicom.Volume is right-handed in (slice, row, column), so that slices of a usual axial CT descend.
#   The geometry in the volume is right; a mask from another library laid on its array is upside down, with the same
#   shape. Documented as handedness, not where arrays are read.
# Seen: highdicom 0.28.2: -200, -300, ... HU where SimpleITK 2.5.7 has -900, -800, ...
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


import highdicom as hd
import SimpleITK as sitk

hu = np.broadcast_to((-900.0 + 100 * np.arange(8))[:, None, None], (8, 32, 32))
enhanced("ct.dcm", hu, [1] * 8, range(8))
volume = hd.imread("ct.dcm").get_volume()
other = sitk.GetArrayFromImage(sitk.ReadImage("ct.dcm"))
print("highdicom", hd.__version__, *volume.array[:3, 0, 0], "SimpleITK", *other[:3, 0, 0])
assert (volume.array == hu[::-1]).all()
assert (other == hu).all()
places = [float((volume.affine @ [k, 0, 0, 1])[2]) for k in range(8)]
assert places == [2.0 * k for k in reversed(range(8))]
END
