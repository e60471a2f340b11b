#!/bin/sh
# The maintained build of imgaug turned weak elastic deformation into nothing.
# Expected: a build that keeps imgaug's interface for new NumPy versions keeps its defaults.
# Behaviour: ElasticTransformation interpolates with order 3 in imgaug 0.4.0 and with order 0 in pyimgaug 0.5.0.
#   Displacements below half a pixel, as with alpha up to 0.4 and a small sigma, then change no pixel at all;
#   order=3 brings them back.
# Seen: pyimgaug 0.5.0: 0 of 20 images changed, 20 with order=3; imgaug 0.4.0: default order 3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 pyimgaug==0.5.0
venv/bin/python -m pip install --quiet --force-reinstall --no-deps "$(venv/bin/python -c \
    'from importlib.metadata import version; print("opencv-python-headless==" + version("opencv-python"))')"
"${PYTHON:-python3}" -m venv old  # Python 3.11 at most, for NumPy 1.23
old/bin/python -m pip install --quiet --disable-pip-version-check numpy==1.23.5 scipy==1.10.1 six imageio==2.37.0 pillow \
    matplotlib==3.7.5 shapely==2.0.6 networkx tifffile==2023.7.10 PyWavelets==1.4.1 lazy_loader packaging
old/bin/python -m pip install --quiet --no-deps imgaug==0.4.0 scikit-image==0.20.0 opencv-python-headless==4.7.0.72
venv/bin/python - <<'END'
import subprocess

import imgaug
import imgaug.augmenters as iaa
import numpy as np

image = np.random.default_rng(0).random((64, 64, 1), np.float32)


def changed(**options):
    draws = (iaa.ElasticTransformation(alpha=0.4, sigma=0.0005, seed=seed, **options)(image=image) for seed in range(20))
    return sum(bool(abs(draw - image).max() > 1e-3) for draw in draws)


default = iaa.ElasticTransformation().order.value
before = 'import imgaug.augmenters as iaa; print(iaa.ElasticTransformation().order.value)'
of_2020 = int(subprocess.run(["old/bin/python", "-c", before], check=True, capture_output=True, text=True).stdout)
print("pyimgaug", imgaug.__version__, "order", default, "images changed:", changed(), "with order=3:", changed(order=3))
print("imgaug 0.4.0: order", of_2020)
assert (default, of_2020) == (0, 3)
assert (changed(), changed(order=3)) == (0, 20)
END
