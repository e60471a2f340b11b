#!/bin/sh
# SciPy's distance transform of an array without background is a distance to nothing, in plausible millimetres.
# Expected: infinity, or an error: there is no background to measure to.
# Behaviour: distance_transform_edt measures to a voxel that does not exist, one step before the first one of the array.
#   By the usual formula of surface distances, which transforms the complement of the reference, what was found in a
#   scan, or slice, without lesion gets a finite distance, which depends on its place in the array.
# Seen: SciPy 1.17.1: a false positive in slice 2 or 7, of 3 mm: Hausdorff distance 16.8 mm or 27.9 mm; the nearest
#   background has the index -1, 0, 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 scipy==1.17.1
venv/bin/python - <<'END'
import numpy as np
import scipy
from scipy import ndimage

reference = np.zeros((10, 32, 32), bool)  # a scan without lesion
distance, nearest = ndimage.distance_transform_edt(~reference, sampling=(3.0, 1.0, 1.0), return_indices=True)
found = []
for k in (2, 7):
    prediction = np.zeros_like(reference)
    prediction[k, 10, 10] = True
    found.append(float(distance[prediction].max()))
print("SciPy", scipy.__version__, "largest distance to the reference, mm:", [round(mm, 1) for mm in found])
print("nearest background:", nearest[:, 5, 16, 16].tolist())
assert np.isfinite(distance).all()
assert np.allclose(found, [np.hypot(3 * (k + 1), np.hypot(10, 10)) for k in (2, 7)])
assert (nearest.reshape(3, -1) == [[-1], [0], [0]]).all()
END
