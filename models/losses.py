"""The losses of GASNet as pure functions on logits.

Computed from the logit x instead of the probability p = sigmoid(x), log p = logsigmoid(x) and log(1 - p) =
logsigmoid(-x) stay exact where p rounds to 0 or 1. The equations are those of the published code of GASNet (arXiv
2010.09456), unless stated otherwise.

Logits are (batch, 1, depth, height, width); targets (1 lesion, 0 background, anything else ignored) and lung masks (0
or 1) have the same shape. All losses compute in float32, whatever the input type, and return a scalar.

With several ranks, each has an equal share of the batch. Voxels are counted over the whole batch, so that the mean of a
loss over ranks is the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from utils import distributed
from utils.section import Section

CONSTRAINTS = ("recons", "origImgToD", "genImgToD", "perception", "MIL")
"""Constraint losses; each is on if its name is a word of EXP.ID."""

Probability = Annotated[float, Field(ge=0, le=1)]


class Weights(Section):
    """LOSS: weights of the terms, and the iterations after which the late ones count."""

    adversarial: NonNegativeFloat = 1.0
    segmentation: NonNegativeFloat = 100.0
    labelled: NonNegativeFloat = 5.0
    recons: NonNegativeFloat = 100.0
    mil: NonNegativeFloat = 1000.0
    mil_start: NonNegativeInt = 10_000
    perception: NonNegativeFloat = 100.0
    perception_start: NonNegativeInt = 10_000
    perception_lesion: Probability = 0.8
    perception_background: Probability = 0.2
    healthy: NonNegativeFloat = 1.0
    segmentation_loss: Literal["focal", "cross_entropy_dice"] = "focal"
    adversarial_segmenter: NonNegativeFloat = 1.0
    perception_ramp: NonNegativeInt = 0

    @model_validator(mode="after")
    def _thresholds_ordered(self) -> Weights:
        if self.perception_background > self.perception_lesion:
            raise ValueError(
                f"PERCEPTION_BACKGROUND ({self.perception_background}) must not exceed "
                f"PERCEPTION_LESION ({self.perception_lesion})"
            )
        return self


class Gate(Section):
    """GATE.X: an objective below `below` is multiplied by `factor`."""

    below: NonNegativeFloat
    factor: NonNegativeFloat


class Gates(Section):
    """GATE: the published down-weighting of small objectives."""

    joint: Gate = Gate(below=0.16, factor=1e-3)
    segmenter: Gate = Gate(below=0.064, factor=1e-2)
    discriminator: Gate = Gate(below=0.16, factor=1e-6)
    origimgtod: Gate = Gate(below=0.1, factor=1e-4)
    enabled: bool = True


HEALTHY, OTHER = 0.0, 1.0
"""Classes of the discriminator."""

IGNORED = -1.0
"""Target value of an ignored voxel; losses ignore any value other than 0 and 1."""

_LOGIT_FLOOR = -100.0
"""Smallest logit: it bounds the loss of a probability of 0 to 100, as in PyTorch's BCE."""


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The loss F: cross-entropy in which a misclassified voxel weighs up to four times as much as a correct one.

    F(p, y) = -[y (2-p)^2 log p + (1-y) (1+p)^2 log(1-p)], summed over the voxels with y in {0, 1} and divided
    by their number (0 if there are none).
    """
    logits = logits.float()
    p = logits.sigmoid()
    lesion, background = target == 1, target == 0
    loss = -((2 - p) ** 2 * logsigmoid(logits) * lesion + (1 + p) ** 2 * logsigmoid(-logits) * background)
    counted = distributed.sum_over_ranks(lesion.sum() + background.sum())
    return loss.sum() * distributed.world_size() / counted.clamp(min=1)


def weighted_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The loss FL: focal loss with lesion voxels weighted by their rarity, for voxel-labelled volumes.

    FL(p, y) = 2 mean(-[w y (1-p)^2 log p + (1-y) p^2 log(1-p)]) with w = N(y=0) / (N(y=1) + 1), mean and numbers over
    the voxels with y in {0, 1}.
    """
    logits = logits.float()
    p = logits.sigmoid()
    lesion, background = target == 1, target == 0
    lesions, others = distributed.sum_over_ranks(torch.stack([lesion.sum(), background.sum()])).to(logits.dtype)
    weight = others / (lesions + 1)
    loss = -(weight * lesion * (1 - p) ** 2 * logsigmoid(logits) + background * p**2 * logsigmoid(-logits))
    return 2 * loss.sum() * distributed.world_size() / (lesions + others).clamp(min=1)


def adversarial_loss(logits: Tensor | Sequence[Tensor], label: float) -> Tensor:
    """Binary cross-entropy of the discriminator's logits, of any shape, against one class, `HEALTHY` or `OTHER`.

    Of several heads, the losses, each a mean over its elements, are added.
    """
    heads = [head.float() for head in ((logits,) if isinstance(logits, Tensor) else logits)]
    return sum(binary_cross_entropy_with_logits(head, torch.full_like(head, label)) for head in heads)


def reconstruction_loss(generated: Tensor, volume: Tensor) -> Tensor:
    """Mean absolute difference between a generated volume and its input."""
    return (generated.float() - volume.float()).abs().mean()


def multiple_instance_loss(logits: Tensor, lung: Tensor) -> Tensor:
    """MIL: a diseased volume has a lesion somewhere in its lungs.

    Binary cross-entropy of max over voxels of (M * L) against 1, with M = sigmoid(logits) and L the lung mask:
    -log of the highest probability inside the lungs, at most 100; the mean over the batch.
    """
    inside = logits.float().masked_fill(lung == 0, _LOGIT_FLOOR).flatten(1)
    return softplus(-inside.amax(dim=1).clamp(min=_LOGIT_FLOOR)).mean()


def lung_cross_entropy(logits: Tensor, target: Tensor, lung: Tensor) -> Tensor:
    """Cross-entropy, a mean over the voxels inside the lungs with y in {0, 1} (0 if there are none)."""
    counted = _counted(target, lung)
    losses = binary_cross_entropy_with_logits(logits.float(), (target == 1).float(), reduction="none")
    voxels = distributed.sum_over_ranks(counted.sum())
    return (losses * counted).sum() * distributed.world_size() / voxels.clamp(min=1)


def lung_dice_loss(logits: Tensor, target: Tensor, lung: Tensor) -> Tensor:
    """Soft Dice loss inside the lungs: 1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), p = sigmoid(logits).

    After Milletari et al., V-Net (arXiv 1606.04797). Sums are over the voxels of a volume that count; the mean is over
    the volumes that have any.
    """
    counted = _counted(target, lung)
    p, y = ((x * counted).flatten(1) for x in (logits.float().sigmoid(), target))
    losses = 1 - (2 * (p * y).sum(dim=1) + 1) / (p.sum(dim=1) + y.sum(dim=1) + 1)
    present = counted.flatten(1).any(dim=1)
    volumes = distributed.sum_over_ranks(present.sum())
    return (losses * present).sum() * distributed.world_size() / volumes.clamp(min=1)


def _counted(target: Tensor, lung: Tensor) -> Tensor:
    return (lung == 1) & ((target == 0) | (target == 1))
