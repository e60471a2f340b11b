#!/bin/sh
# SimpleITK ignores the scaling of a MetaImage.
# Expected: values are ElementToIntensityFunctionSlope times the stored ones plus ElementToIntensityFunctionOffset, as
#   NIfTI and DICOM are scaled on reading; or an error.
# Behaviour: stored values are returned, and neither field is among the metadata, so that a program cannot make up for
#   it. (VTK's reader hands both to its caller.) Lengths in cm stay in cm, too; a metadata key names their unit.
# Seen: SimpleITK 2.5.7: 224, 1064 for -800, 40 HU; spacing 0.05 for 0.5 mm, ITK_VoxelUnits cm.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 SimpleITK==2.5.7
venv/bin/python - <<'END'
import numpy as np
import SimpleITK as sitk

header = """\
ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
Offset = 0 0 0
TransformMatrix = 1 0 0 0 1 0 0 0 1
DistanceUnits = cm
ElementSpacing = 0.05 0.05 0.2
DimSize = 2 1 1
ElementToIntensityFunctionSlope = 1
ElementToIntensityFunctionOffset = -1024
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
with open("ct.mha", "wb") as file:
    file.write(header.encode() + np.array([224, 1064], "<i2").tobytes())
image = sitk.ReadImage("ct.mha")
values = sitk.GetArrayFromImage(image).ravel().tolist()
print("SimpleITK", sitk.Version_VersionString(), "values", values, "spacing", image.GetSpacing())
print("metadata", *image.GetMetaDataKeys(), "unit", image.GetMetaData("ITK_VoxelUnits"))
assert values == [224, 1064]
assert np.allclose(image.GetSpacing(), (0.05, 0.05, 0.2))
assert image.GetMetaData("ITK_VoxelUnits") == "cm"
assert not [key for key in image.GetMetaDataKeys() if "Function" in key or "Intensity" in key]
END
