#!/bin/sh
# segmentation_models_pytorch's Dice loss of scans without lesion is 0, whatever is found in them.
# Expected: a loss of almost 1 where all of a healthy scan is marked as lesion, as MONAI's has it, so that a network that is
#   shown healthy scans learns from them.
# Behaviour: where no scan of a batch has lesion, the losses Dice, Jaccard and Tversky are 0 and have no gradient, with
#   smooth=1, too: training on batches of healthy scans changes nothing, and the loss looks perfect.
# Seen: segmentation-models-pytorch 0.6.0, torch 2.14.1: 0, 0 and 0 for a batch without lesion that is marked all over; MONAI
#   1.6.1: 1.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    segmentation-models-pytorch==0.6.0 monai==1.6.1 torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import monai
import segmentation_models_pytorch as smp
import torch

healthy = torch.zeros(2, 1, 16, 16)
losses = {
    f"segmentation_models_pytorch {smp.__version__}, Dice": smp.losses.DiceLoss("binary"),
    "the same with smooth=1": smp.losses.DiceLoss("binary", smooth=1),
    "Jaccard": smp.losses.JaccardLoss("binary"),
    "Tversky": smp.losses.TverskyLoss("binary"),
    f"MONAI {monai.__version__}, Dice": monai.losses.DiceLoss(sigmoid=True),
    "cross-entropy of PyTorch": torch.nn.BCEWithLogitsLoss(),
}
for name, loss in losses.items():
    logits = torch.full(healthy.shape, 5.0, requires_grad=True)  # all of it is lesion
    value = loss(logits, healthy)
    value.backward()
    gradient = logits.grad.abs().sum().item()
    print(f"{name}: loss {value.item():.3f}, sum of gradients {gradient:.2g}")
    if name.startswith(("MONAI", "cross-entropy")):
        assert value.item() > 0.9
    else:
        assert value.item() == 0 and gradient == 0, "healthy scans count now"
print("as found")
END
