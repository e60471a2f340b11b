#!/bin/sh
# SimpleITK's Feret diameter is one voxel too short, in thick slices by a slice.
# Expected: the largest diameter of a lesion, as its oriented bounding box and scikit-image's feret_diameter_max have it.
# Behaviour: LabelShapeStatisticsImageFilter measures between the centres of the outermost voxels. A lesion of one
#   slice has no height, one of two slices 5 mm apart is 5 mm high. The oriented box of the same filter has whole voxels.
# Seen: SimpleITK 2.5.7, scikit-image 0.26.0: a nodule of 3x3x2 voxels of 1x1x5 mm: 5.7 mm, scikit-image 10.4, box 10.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 scikit-image==0.26.0 SimpleITK==2.5.7
venv/bin/python - <<'END'
import numpy as np
import SimpleITK as sitk
from skimage.measure import regionprops

spacing = (5.0, 1.0, 1.0)  # z, y, x
for size in ((2, 3, 3), (4, 10, 6)):
    mask = np.zeros((12, 32, 32), np.uint8)
    mask[tuple(slice(4, 4 + n) for n in size)] = 1
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(spacing[::-1])
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputeFeretDiameterOn()
    shape.ComputeOrientedBoundingBoxOn()
    shape.Execute(image)
    (region,) = regionprops(mask, spacing=spacing)
    found, other = shape.GetFeretDiameter(1), float(region.feret_diameter_max)
    box = max(shape.GetOrientedBoundingBoxSize(1))
    between_centres = np.linalg.norm((np.array(size) - 1) * spacing)
    print(f"{size} voxels: SimpleITK {found:.1f} mm, scikit-image {other:.1f} mm, longest side of the box {box:.1f} mm")
    assert abs(found - between_centres) < 1e-6
    assert found < box - 1
    assert box < other < np.linalg.norm(np.multiply(size, spacing)) + 1e-6
END
