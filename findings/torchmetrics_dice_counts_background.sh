#!/bin/sh
# The Dice of torchmetrics is by default the mean of lesion and background.
# Expected: num_classes=2 gives the Dice of the lesion, or one value per class.
# Behaviour: include_background is True and the classes are averaged: a small lesion that is missed still has a Dice of
#   almost 0.5, and a scan without lesion 1. Without background, scans without lesion drop out of the mean.
# Seen: torchmetrics 1.9.0: 0.748 for a lesion of 1000 of 163,840 voxels whose Dice is 0.5; 0.498 for one that is missed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6
venv/bin/python - <<'END'
import torch
from torchmetrics.segmentation import DiceScore

lesion = torch.zeros(1, 40, 64, 64, dtype=torch.long)
lesion[0, 10:20, 10:20, 10:20] = 1
half_right, nothing = lesion.roll(5, dims=3), torch.zeros_like(lesion)


def dice(prediction, truth, **options):
    return float(DiceScore(num_classes=2, input_format="index", **options)(prediction, truth))


found = [dice(half_right, lesion), dice(nothing, lesion), dice(nothing, nothing)]
print("half right, nothing found, healthy:", [round(value, 3) for value in found])
assert abs(found[0] - 0.75) < 0.01
assert abs(found[1] - 0.5) < 0.01
assert found[2] == 1
alone = dice(half_right, lesion, include_background=False)
both = dice(torch.cat([half_right, half_right]), torch.cat([lesion, nothing]), include_background=False)
print("without background:", alone, "; with a healthy scan of false positives:", both)
assert alone == 0.5
print("as found")
END
