#!/bin/sh
# A NIfTI file with two geometries: SimpleITK chooses by the sform's code, nibabel does not.
# Expected: both take the sform if its code is above 0, as the format's widely used readers do.
# Behaviour: nibabel takes the sform; SimpleITK takes it if its code is 1 (scanner), and the qform if the sform's
#   code is 2 (aligned) or 4 (MNI) and the qform's is 1. The same CT lies at two places, and so does a mask written
#   by one and laid over the other.
# Seen: SimpleITK 2.5.7: origin of the sform with code 1, of the qform with code 2; nibabel 5.4.2: of the sform.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 nibabel==5.4.2 SimpleITK==2.5.7
venv/bin/python - <<'END'
import nibabel as nib
import numpy as np
import SimpleITK as sitk

sform, qform = np.eye(4), np.eye(4)
sform[:3, 3], qform[:3, 3] = (-10, -20, -30), (5, 6, 7)
found = {}
for code in (1, 2, 4):
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), None)
    image.set_sform(sform, code)
    image.set_qform(qform, 1)
    image.to_filename("ct.nii")
    x, y, z = sitk.ReadImage("ct.nii").GetOrigin()
    found[code] = tuple(nib.load("ct.nii").affine[:3, 3].tolist()), (-x, -y, z)  # LPS to RAS
    print(f"sform code {code}: nibabel {found[code][0]}, SimpleITK {found[code][1]} (RAS)")
at_sform, at_qform = (-10.0, -20.0, -30.0), (5.0, 6.0, 7.0)
assert found == {1: (at_sform, at_sform), 2: (at_sform, at_qform), 4: (at_sform, at_qform)}
END
