#!/bin/sh
# SimpleITK keeps the frames of an Enhanced CT in file order, with spacing 1.
# Expected: frames are placed by their ImagePositionPatient, or an error says that they are not in order.
# Behaviour: if the frames do not follow each other through the patient (here: the even slices, then the odd ones,
#   as interleaved scans store them), slices stay in the file's order, and the spacing is 1, 1, 1 mm instead of the
#   header's. Nothing is said. (highdicom sorts them; dcm2niix, too, but see
#   dcm2niix_upside_down.sh.)
# Seen: SimpleITK 2.5.7: -900, -700, -500 HU for -900, -800, -700; spacing (1.0, 1.0, 1.0) for (0.5, 0.5, 2.0).
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


import SimpleITK as sitk

hu = np.broadcast_to((-900.0 + 100 * np.arange(8))[:, None, None], (8, 32, 32))
enhanced("sorted.dcm", hu, [1] * 8, range(8))
enhanced("interleaved.dcm", hu, [1] * 8, [0, 2, 4, 6, 1, 3, 5, 7])
ordered, interleaved = sitk.ReadImage("sorted.dcm"), sitk.ReadImage("interleaved.dcm")
print("SimpleITK", sitk.Version_VersionString())
for image in (ordered, interleaved):
    print("spacing", image.GetSpacing(), "HU", *sitk.GetArrayFromImage(image)[:3, 0, 0])
assert ordered.GetSpacing() == (0.5, 0.5, 2.0)
assert interleaved.GetSpacing() == (1.0, 1.0, 1.0)
assert (sitk.GetArrayFromImage(interleaved)[:3, 0, 0] == [-900, -700, -500]).all()
END
