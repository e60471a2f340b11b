#!/bin/sh
# SciPy's zoom turns the last plane of some volumes into zeros.
# Expected: with its default mode, zoom puts the first and last samples of input and output onto each other, so that
#   a constant volume stays constant.
# Behaviour: for some lengths rounding puts the last sample a hair beyond the input, where mode='constant' is 0: 0
#   HU, that is tissue, in the last slice of a resized CT, and nothing in the masks. mode='nearest' avoids it.
# Seen: SciPy 1.17.1: 20 of the lengths from 20 to 399, zoomed to 40: 26, 51, 56, 101, 106, 111, ...
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
from scipy.ndimage import zoom


def last(length, **options):
    return zoom(np.full(length, 100.0), 40 / length, order=1, **options)[-1]


zeros = [length for length in range(20, 400) if last(length) == 0]
print(f"SciPy {scipy.__version__}: {len(zeros)} of 380 lengths:", *zeros[:6])
assert zeros[:6] == [26, 51, 56, 101, 106, 111]
assert len(zeros) == 20
assert all(last(length, mode="nearest") == 100 for length in range(20, 400))
END
