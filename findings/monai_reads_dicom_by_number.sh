#!/bin/sh
# MONAI reads the slices of a DICOM folder in the order of InstanceNumber, and two series as one volume.
# Expected: slices in the order of ImagePositionPatient, or an error; of two series one, or an error.
# Behaviour: without ITK, LoadImage takes PydicomReader. It sorts by InstanceNumber alone, which need not follow the places,
#   and says a spacing that is the mean distance of the slices in that order. Slices of all series in the folder are sorted
#   into each other.
# Seen: monai 1.6.1, pydicom 3.0.2: a scan acquired in two passes comes as 0, 6, 2, 8, 4, 10 mm with a spacing of 2; two
#   series of four slices, 100 mm apart, come as one volume of eight, in no order of places, with a spacing of 15.1.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    monai==1.6.1 pydicom==3.0.2 torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import warnings
from pathlib import Path

import monai
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")


def write_series(folder, name, places):
    """A series, numbered in the order of `places` in mm; the value of each slice is its place."""
    Path(folder).mkdir(exist_ok=True)
    study, series = generate_uid(), generate_uid()
    for number, z in enumerate(places, 1):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = study, series, "CT"
        slice_.InstanceNumber, slice_.SliceThickness, slice_.PixelSpacing = number, 2, [1, 1]
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
        slice_.Rows = slice_.Columns = 8
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleIntercept, slice_.RescaleSlope = 0, 1
        slice_.PixelData = np.full((8, 8), z, np.int16).tobytes()
        pydicom.dcmwrite(f"{folder}/{name}{number}.dcm", slice_, enforce_file_format=True)


def read(folder):
    """Places of the slices in the order read, and their spacing."""
    image = monai.transforms.LoadImage(image_only=True)(folder)
    return np.asarray(image)[0, 0].astype(int).tolist(), abs(float(image.affine[2, 2]))


write_series("passes", "a", [0, 6, 2, 8, 4, 10])
write_series("two", "a", [0, 2, 4, 6])
write_series("two", "b", [100, 102, 104, 106])
print(f"monai {monai.__version__}, pydicom {pydicom.__version__}")
passes, two = read("passes"), read("two")
print("acquired in two passes: places {}, spacing {:.1f}".format(*passes))
print("two series in a folder: places {}, spacing {:.1f}".format(*two))
assert passes == ([0, 6, 2, 8, 4, 10], 2.0), "slices are sorted by their places now"
assert len(two[0]) == 8 and two[0] != sorted(two[0]), "series are told apart now"
print("as found")
END
