#!/bin/sh
# MONAI turns an NRRD whose space is written LPS around by 180 degrees.
# Expected: the affine is that of the same file in NIfTI, RAS, whichever way the header names its space.
# Behaviour: NrrdReader, which LoadImage takes for .nrrd, compares the space with the words left-posterior-superior and
#   takes all others for RAS: LPS, which the format defines as the same, and left-anterior-superior (LAS), which is
#   neither. Patient left and right, front and back are exchanged, and a mask so read lies turned on its CT
#   after Orientation. SimpleITK and NIfTI agree for all of them.
# Seen: MONAI 1.6.1, pynrrd 1.1.3: diagonal 0.7, 0.8, 2.5 instead of -0.7, -0.8, 2.5; left-anterior-superior: 0.7, 0.8
#   instead of -0.7, 0.8.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 monai==1.6.1 torch==2.14.1 nibabel==5.4.2 pynrrd==1.1.3 SimpleITK==2.5.7
venv/bin/python - <<'END'
from importlib.metadata import version

import nibabel as nib
import nrrd
import numpy as np
import SimpleITK as sitk
from monai.transforms import LoadImage

voxels = np.zeros((8, 6, 4), np.int16)
found = {}
for space in ("left-posterior-superior", "LPS", "right-anterior-superior", "RAS", "left-anterior-superior", "LAS"):
    header = {"space": space, "space directions": np.diag([0.7, 0.8, 2.5]), "space origin": [10, 20, 30]}
    nrrd.write("ct.nrrd", voxels, header)
    sitk.WriteImage(sitk.ReadImage("ct.nrrd"), "ct.nii")
    itk = nib.load("ct.nii").affine.diagonal()[:3].round(3).tolist()
    monai = LoadImage(image_only=True)("ct.nrrd").affine.diagonal()[:3].numpy().round(3).tolist()
    print(f"{space}: MONAI {monai}, SimpleITK {itk}")
    found[space] = monai == itk
print(*(f"{name} {version(name)}" for name in ("monai", "pynrrd", "simpleitk")))
assert [space for space, right in found.items() if not right] == ["LPS", "left-anterior-superior", "LAS"]
END
