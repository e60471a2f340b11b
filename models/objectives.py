"""How the three networks are joined: the synthetic volume, and the objective of each training step.

Symbols, as in the paper's figure: I a diseased volume, I_h a healthy one, I_l a voxel-labelled one with lesion
mask Y, M = S(I), I_g = G(I), L the lung mask, I_s the synthetic volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

import processes
from models.discriminator import Discriminator
from models.generator import Generator
from models.layers import place
from models.losses import (
    HEALTHY,
    IGNORED,
    OTHER,
    adversarial_loss,
    focal_loss,
    multiple_instance_loss,
    reconstruction_loss,
    weighted_focal_loss,
)
from models.segmenter import Segmenter
from settings import GateSettings, GatesSettings, LossSettings


class Networks(NamedTuple):
    """The three networks."""

    segmenter: Segmenter
    generator: Generator
    discriminator: Discriminator

    def to(self, device: torch.device, channels_last: bool | None = None) -> Networks:
        """The networks on a device, in a layout (see `place`)."""
        return Networks(*(place(network, device, channels_last) for network in self))


class Batch(NamedTuple):
    """Volumes of one kind, (batch, 1, depth, height, width) each.

    `image` is in [-1, 1], `lung` and `lesion` are 0 or 1 (`lesion` all 0 where it is not known), and `ids` names
    the volumes.
    """

    image: Tensor
    lung: Tensor
    lesion: Tensor
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """What an experiment chooses: the constraint losses that are on, weights, gates, and the last iteration."""

    constraints: frozenset[str]
    last_iteration: int
    loss: LossSettings = field(default_factory=LossSettings)
    gate: GatesSettings = field(default_factory=GatesSettings)


class Objective(NamedTuple):
    """The value to minimise, weighted and gated, and its terms by name, unweighted and without gradient."""

    total: Tensor
    terms: Mapping[str, Tensor]


def synthesise(image: Tensor, lesion: Tensor, lung: Tensor, generated: Tensor) -> Tensor:
    """The synthetic volume: the generated volume where the lesion is, the original elsewhere.

    I_s = M L I_g + (1 - M L) I

    Args:
        image: I, in [-1, 1].
        lesion: M, probability in [0, 1].
        lung: L, 0 or 1.
        generated: I_g, in [-1, 1].
    """
    inside = lesion * lung
    return inside * generated + (1 - inside) * image


def paste_lesions(
    image: Tensor, lesion: Tensor, healthy: Tensor, healthy_lung: Tensor, loss: LossSettings
) -> tuple[Tensor, Tensor]:
    """Predicted lesions pasted into healthy lungs, and the labels that follow from them.

    m = M L_h; I_a = I_h (1 - m) + I m; Y_a = 1 where m > perception_lesion, ignored where
    perception_background < m <= perception_lesion, 0 elsewhere. No gradient flows through m.

    Returns:
        I_a and Y_a.
    """
    m = lesion.detach() * healthy_lung
    label = (m > loss.perception_lesion).float()
    uncertain = (m > loss.perception_background) & (m <= loss.perception_lesion)
    return healthy * (1 - m) + image * m, label.masked_fill(uncertain, IGNORED)


def _gated(value: Tensor, gate: GateSettings, gates: GatesSettings) -> Tensor:
    if not gates.enabled:
        return value
    of_the_whole_batch = processes.summed(value) / processes.count()
    return torch.where(of_the_whole_batch < gate.below, value * gate.factor, value)


def _objective(total: Tensor, terms: Mapping[str, Tensor]) -> Objective:
    return Objective(total, {name: term.detach() for name, term in terms.items()})


def _judged(discriminator: Discriminator, volumes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits of D by name, from one pass: its weights are normalised once for all of them."""
    logits = discriminator(torch.cat(list(volumes.values())))
    return dict(zip(volumes, logits.chunk(len(volumes)), strict=True))


def joint_objective(networks: Networks, diseased: Batch, healthy: Batch, method: Method, iteration: int) -> Objective:
    """Objective of generator and segmenter together: the synthetic volume is to pass for a healthy one.

    BCE(D(I_s), healthy)
      + genImgToD:  BCE(D(I_g), healthy)
      + recons:     mean|G(I_h) - I_h|
      + MIL:        a lesion somewhere in a diseased volume, after `loss.mil_start`
      + perception: F(S(I_a), Y_a), after `loss.perception_start`

    Args:
        networks: S, G and D; D's parameters should not require gradients.
        diseased: I with its lung mask.
        healthy: I_h with its lung mask, as many volumes as `diseased`.
        method: constraints, weights and gates.
        iteration: t.
    """
    loss = method.loss
    logits = networks.segmenter(diseased.image).float()
    lesion = logits.sigmoid()
    generated = networks.generator(diseased.image).float()
    synthetic = synthesise(diseased.image, lesion, diseased.lung, generated)

    judged = {"adversarial": synthetic}
    if "genImgToD" in method.constraints:
        judged["genImgToD"] = generated
    judgements = _judged(networks.discriminator, judged)
    terms = {name: adversarial_loss(judgement, HEALTHY) for name, judgement in judgements.items()}
    total = loss.adversarial * sum(terms.values())
    if "recons" in method.constraints:
        terms["recons"] = reconstruction_loss(networks.generator(healthy.image), healthy.image)
        total = total + loss.recons * terms["recons"]
    if "MIL" in method.constraints and iteration > loss.mil_start:
        terms["MIL"] = multiple_instance_loss(logits, diseased.lung)
        total = total + loss.mil * terms["MIL"]
    if "perception" in method.constraints and iteration > loss.perception_start:
        pasted, label = paste_lesions(diseased.image, lesion, healthy.image, healthy.lung, loss)
        terms["perception"] = focal_loss(networks.segmenter(pasted), label)
        total = total + loss.perception * terms["perception"]
    return _objective(_gated(total, method.gate.joint, method.gate), terms)


def segmenter_objective(networks: Networks, healthy: Batch, labelled: Batch, method: Method) -> Objective:
    """Objective of the segmenter alone: no lesion in healthy volumes, the known ones in labelled volumes.

    segmentation * [F(S(I_h), 0) + labelled * FL(S(I_l), Y)]
    """
    logits = networks.segmenter(healthy.image)
    terms = {
        "healthy": focal_loss(logits, torch.zeros_like(logits)),
        "labelled": weighted_focal_loss(networks.segmenter(labelled.image), labelled.lesion),
    }
    total = method.loss.segmentation * (terms["healthy"] + method.loss.labelled * terms["labelled"])
    return _objective(_gated(total, method.gate.segmenter, method.gate), terms)


def discriminator_objective(
    networks: Networks, diseased: Batch, healthy: Batch, method: Method, iteration: int
) -> Objective:
    """Objective of the discriminator: healthy volumes apart from all others.

    BCE(D(I_s), other) + BCE(D(I_h), healthy)
      + origImgToD: BCE(D(I), other)
      + genImgToD:  (1 - t/T) BCE(D(I_g), other), T the last iteration

    M and I_g are computed without gradients.
    """
    with torch.no_grad():
        lesion = networks.segmenter(diseased.image).float().sigmoid()
        generated = networks.generator(diseased.image).float()
        synthetic = synthesise(diseased.image, lesion, diseased.lung, generated)

    judged = {"synthetic": synthetic, "healthy": healthy.image}
    if "origImgToD" in method.constraints:
        judged["origImgToD"] = diseased.image
    if "genImgToD" in method.constraints:
        judged["genImgToD"] = generated
    judgements = _judged(networks.discriminator, judged)
    terms = {
        name: adversarial_loss(judgement, HEALTHY if name == "healthy" else OTHER)
        for name, judgement in judgements.items()
    }
    total = terms["synthetic"] + terms["healthy"]
    if "origImgToD" in terms:
        total = total + _gated(terms["origImgToD"], method.gate.origimgtod, method.gate)
    if "genImgToD" in terms:
        total = total + (1 - iteration / method.last_iteration) * terms["genImgToD"]
    return _objective(_gated(total, method.gate.discriminator, method.gate), terms)
