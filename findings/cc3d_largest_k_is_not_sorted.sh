#!/bin/sh
# cc3d.largest_k does not number the largest component 1, and numbers otherwise once another package is installed.
# Expected: of the k largest components, 1 is the largest; as lungs are kept by it, 1 and 2 would be the larger ones first.
# Behaviour: the largest one is k. With fastremap installed, the order is that of the places in the volume, so that the
#   same code keeps another component on another machine. The docstring says only that numbers may change.
# Seen: connected-components-3d 4.1.1, k = 2, components of 1000 and 8 voxels: 1 is the small one; with fastremap 1.21.0
#   1 is whichever lies first.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check connected-components-3d==4.1.1 numpy==2.4.6
cat > show.py <<'END'
import sys

import cc3d
import numpy as np

mask = np.zeros((20, 20, 20), np.uint8)
mask[1:3, 1:3, 1:3] = 1
mask[5:15, 5:15, 5:15] = 1
mask[17:19, 17:19, 17] = 1
sizes = []
for volume in (mask, np.ascontiguousarray(mask[::-1])):  # the same volume, upright and upside down
    found = cc3d.largest_k(volume, k=2)
    sizes.append([int((found == label).sum()) for label in (1, 2)])
print("voxels of components 1 and 2, upright and upside down:", sizes)
assert sizes == ([[8, 1000], [1000, 8]] if sys.argv[1:] else [[8, 1000], [8, 1000]])
END
venv/bin/python show.py
venv/bin/python -m pip install --quiet --disable-pip-version-check fastremap==1.21.0
venv/bin/python show.py --with-fastremap
echo "as found"
