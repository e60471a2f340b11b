#!/bin/sh
# A NIfTI volume read by PyVista lies elsewhere than its header says, and is turned.
# Expected: the place and direction of the header, so that a CT, its mask and surfaces made from either lie on each other.
# Behaviour: PyVista, by VTK's reader, keeps the spacing alone. The first voxel lies at 0, 0, 0, and axes that run to the
#   right or the front are mirrored. Two files of one scan with different fields of view, or a crop and its scan, do not
#   lie on each other, and left and right are swapped against other programs.
# Seen: pyvista 0.49.1, VTK 9.7.2: a voxel at (98.6, 117.6, -290) mm lies at (1.4, 2.4, 10).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    pyvista==0.49.1 vtk==9.7.2 nibabel==5.4.2 numpy==2.4.6
venv/bin/python - <<'END'
import nibabel as nib
import numpy as np
import pyvista

voxels = np.zeros((8, 10, 12), np.int16)
voxels[2, 3, 4] = 100
affine = np.diag([-0.7, -0.8, 2.5, 1])  # x to the right, y to the front, as from a scanner
affine[:3, 3] = 100, 120, -300
nib.save(nib.Nifti1Image(voxels, affine), "scan.nii.gz")
expected = (affine @ [2, 3, 4, 1])[:3]

mesh = pyvista.read("scan.nii.gz")
found = mesh.points[int(np.argmax(mesh.point_data.active_scalars))]
print(f"pyvista {pyvista.__version__}: spacing {np.round(mesh.spacing, 2)}, origin {mesh.origin}")
print("direction", np.asarray(mesh.direction_matrix).tolist())
print(f"the bright voxel lies at {found.round(1)} mm, by the header at {expected.round(1)}")
assert np.allclose(mesh.spacing, (0.7, 0.8, 2.5))
assert np.allclose(found, (1.4, 2.4, 10)), "it lies elsewhere now"
print("as found")
END
