#!/bin/sh
# SimpleITK's average Hausdorff distance is no mean surface distance.
# Expected: the mean distance between the two surfaces, as MedPy's assd and others report it.
# Behaviour: HausdorffDistanceImageFilter averages over all voxels of a mask, and those inside the other mask count as
#   0 mm. The larger a lesion is for the same error at its surface, the smaller the distance. The maximum is that of
#   the surfaces.
# Seen: SimpleITK 2.5.7, two balls 5 mm apart: radius 8 mm, 1.07 mm, 2.40 between the surfaces; radius 24 mm, 0.34
#   and 2.38.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7
venv/bin/python - <<'END'
import numpy as np
import SimpleITK as sitk
from scipy import ndimage


def ball(radius, x):
    place = np.indices((64, 64, 72)) - np.reshape((32, 32, x), (3, 1, 1, 1))
    return (place**2).sum(0) < radius**2


def surface(mask):
    return mask & ~ndimage.binary_erosion(mask)


def between(a, b):
    """Distances in mm from the surface of a to that of b."""
    return ndimage.distance_transform_edt(~surface(b))[surface(a)]


found = {}
for radius in (8, 16, 24):
    a, b = ball(radius, 33), ball(radius, 38)
    distance = sitk.HausdorffDistanceImageFilter()
    distance.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (a, b)))
    surfaces = np.concatenate([between(a, b), between(b, a)])
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    found[radius] = distance.GetAverageHausdorffDistance(), surfaces.mean()
    print(f"radius {radius} mm, Dice {dice:.2f}: SimpleITK {found[radius][0]:.2f} mm, surfaces {found[radius][1]:.2f} mm")
    assert abs(distance.GetHausdorffDistance() - surfaces.max()) < 1e-6
    # The mean over all voxels of a mask, in the direction that is larger.
    means = [ndimage.distance_transform_edt(~other)[mask].mean() for mask, other in ((a, b), (b, a))]
    assert abs(found[radius][0] - max(means)) < 0.01
assert all(average < 0.5 * surfaces for average, surfaces in found.values())
assert found[24][0] < 0.4 * found[8][0]
assert found[24][1] > 0.95 * found[8][1]
END
