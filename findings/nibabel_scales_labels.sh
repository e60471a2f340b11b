#!/bin/sh
# nibabel saves labels 0, 1, 2 as 0, 0.996, 2.
# Expected: whole numbers that fit the file's type are stored as they are.
# Behaviour: get_fdata returns floats, and floats that are saved with the header of a mask of integers are scaled until
#   the largest fills the type; labels between are rounded to its steps. mask == 1 finds nothing then, and a cast to
#   integers turns label 1 into background. Masks of 0, 1 and of 0 to 3 happen to survive, as 255 is a multiple of 1
#   and 3; those of 0 to 2 and 0 to 4 do not. An array of integers is stored as it is.
# Seen: nibabel 5.4.2: 0.99608 in uint8, 1.00002 in int16, for label 1 of 2; SimpleITK 2.5.7 reads it as a float, and
#   as 0 when cast.
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

print("nibabel", nib.__version__, "SimpleITK", sitk.Version_VersionString())
changed = {}
for highest in (1, 2, 3, 4):
    for dtype in (np.uint8, np.int16):
        labels = np.repeat(np.arange(highest + 1, dtype=dtype), 8).reshape(highest + 1, 2, 4)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), "drawn.nii")
        drawn = nib.load("drawn.nii")
        assert np.array_equal(drawn.get_fdata(), labels)
        nib.save(nib.Nifti1Image(drawn.get_fdata(), drawn.affine, drawn.header), "saved.nii")
        saved, itk = nib.load("saved.nii"), sitk.GetArrayFromImage(sitk.ReadImage("saved.nii"))
        assert saved.get_data_dtype() == dtype
        values = np.unique(saved.get_fdata()).round(5).tolist()
        print(f"{np.dtype(dtype)}: {values}; SimpleITK, as integers: {np.unique(itk.astype(int)).tolist()}")
        changed[highest, np.dtype(dtype).name] = values != list(range(highest + 1))
assert changed == {(n, name): n in (2, 4) for n in (1, 2, 3, 4) for name in ("uint8", "int16")}
END
