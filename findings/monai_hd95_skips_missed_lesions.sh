#!/bin/sh
# MONAI's mean HD95 leaves out scans in which nothing was found.
# Expected: a missed lesion makes the mean distance infinite, as it does without a percentile.
# Behaviour: the distances from an empty prediction are infinite; their percentile is NaN, and the mean leaves out NaN. A
#   model is better by HD95 for each hard scan in which it finds nothing. The plain Hausdorff distance and the surface
#   distance of the same scans are infinite, the surface Dice of the missed one is 0. A warning says that distances may
#   be NaN or infinite.
# Seen: MONAI 1.6.1, torch 2.14.1: one lesion found 3 mm off, one missed: HD95 3 mm over one scan, Hausdorff inf over two.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 monai==1.6.1 torch==2.14.1 scipy==1.17.1
venv/bin/python - <<'END'
from importlib.metadata import version

import torch
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric


def ball(x):
    place = torch.stack(torch.meshgrid(*(torch.arange(40.0),) * 3, indexing="ij"))
    return ((place - torch.tensor([20.0, 20.0, x]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 64


truth, near = ball(20.0), ball(23.0)
predictions = torch.stack([near, torch.zeros_like(truth)])[:, None].int()
truths = torch.stack([truth, truth])[:, None].int()
metrics = {
    "HD95": HausdorffDistanceMetric(include_background=True, percentile=95, get_not_nans=True),
    "Hausdorff": HausdorffDistanceMetric(include_background=True, get_not_nans=True),
    "surface distance": SurfaceDistanceMetric(include_background=True, symmetric=True, get_not_nans=True),
    "surface Dice": SurfaceDiceMetric([1.0], include_background=True, get_not_nans=True),
}
found = {}
print("monai", version("monai"), "torch", torch.__version__)
for name, metric in metrics.items():
    metric(predictions, truths)
    found[name] = tuple(float(value) for value in metric.aggregate())
    print(f"{name}: {found[name][0]:.2f} over {found[name][1]:.0f} scans; of each {metric.get_buffer().flatten().tolist()}")
assert found["HD95"] == (3.0, 1.0)
assert found["Hausdorff"] == found["surface distance"] == (float("inf"), 2.0)
assert found["surface Dice"][1] == 2
END
