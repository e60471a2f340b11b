#!/bin/sh
# pynrrd's index_order="C" turns the array, but not the header.
# Expected: with index_order="C" the header is in the order of the array, (z, y, x), when it is written and read.
# Behaviour: sizes, spacings and space directions stay in the order of the file, (x, y, z): spacings given as (z, y, x)
#   land on the wrong axes, without a word, and read back unchanged. The volume in ml is right, lengths, distances and
#   the place over the CT are not.
# Seen: pynrrd 1.1.3: 6 slices 5 mm apart of pixels of 0.7 mm: SimpleITK 2.5.7 reads columns 5 mm wide; a lesion of
#   30 mm from head to foot is 4.2 mm high.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pynrrd==1.1.3 SimpleITK==2.5.7
venv/bin/python - <<'END'
import nrrd
import numpy as np
import SimpleITK as sitk

lesion = np.zeros((6, 20, 30), np.uint8)  # z, y, x
lesion[:, 8:12, 8:12] = 1
nrrd.write("lesion.nrrd", lesion, {"spacings": [5, 0.7, 0.7]}, index_order="C")
back, header = nrrd.read("lesion.nrrd", index_order="C")
image = sitk.ReadImage("lesion.nrrd")
shape = sitk.LabelShapeStatisticsImageFilter()
shape.Execute(image)
*_, width, depth, height = shape.GetBoundingBox(1)
extent = [round(n * mm, 1) for n, mm in zip((width, depth, height), image.GetSpacing())]
print("array", back.shape, "sizes", header["sizes"].tolist(), "spacings", header["spacings"].tolist())
print("SimpleITK: size", image.GetSize(), "spacing", image.GetSpacing(), "lesion (x, y, z)", extent, "mm")
assert np.array_equal(back, lesion)
assert header["sizes"].tolist() == [30, 20, 6]
assert header["spacings"].tolist() == [5, 0.7, 0.7]
assert image.GetSpacing() == (5, 0.7, 0.7)
assert extent == [20, 2.8, 4.2]
assert abs(shape.GetPhysicalSize(1) - lesion.sum() * 5 * 0.7 * 0.7) < 1e-6
END
