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

from configs.settings import GateSettings, GatesSettings, LossSettings
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
from utils import distributed


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
    """The value to minimise, weighted and gated, and its terms by name, unweighted and without gradient.

    `weighted` are the terms as they stand in the sum before the gate, with their gradients.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    weighted: Mapping[str, Tensor]


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
    of_the_whole_batch = distributed.sum_over_ranks(value) / distributed.world_size()
    return torch.where(of_the_whole_batch < gate.below, value * gate.factor, value)


def _objective(total: Tensor, terms: Mapping[str, Tensor], weighted: Mapping[str, Tensor]) -> Objective:
    return Objective(total, {name: term.detach() for name, term in terms.items()}, weighted)


def _judged(discriminator: Discriminator, volumes: Mapping[str, Tensor], noise: float) -> dict[str, Tensor]:
    """Logits of D by name, from one pass: its weights are normalised once for all of them.

    Noise hides from D what it is not to judge by: that what G makes is smoother than a scan.
    """
    seen = torch.cat(list(volumes.values()))
    if noise:
        seen = seen + noise * torch.randn_like(seen)
    logits = discriminator(seen)
    return dict(zip(volumes, logits.chunk(len(volumes)), strict=True))


def joint_objective(networks: Networks, diseased: Batch, healthy: Batch, method: Method, iteration: int) -> Objective:
    """Objective of generator and segmenter together: the synthetic volume is to pass for a healthy one.

    BCE(D(I_s), healthy)
      + genImgToD:  BCE(D(I_g), healthy)
      + recons:     mean|G(I_h) - I_h|
      + MIL:        a lesion somewhere in a diseased volume, after `loss.mil_start`
      + perception: F(S(I_a), Y_a), after `loss.perception_start`, rising over `loss.perception_ramp`
      + restoration (ours): mean|G(I_a) - I_h|

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
    synthetic = synthesise(diseased.image, _scaled(lesion, loss.adversarial_segmenter), diseased.lung, generated)

    judged = {"adversarial": synthetic}
    if "genImgToD" in method.constraints:
        judged["genImgToD"] = generated
    judgements = _judged(networks.discriminator, judged, loss.instance_noise)
    terms = {name: adversarial_loss(judgement, HEALTHY) for name, judgement in judgements.items()}
    total = loss.adversarial * sum(terms.values())
    weighted = {name: loss.adversarial * term for name, term in terms.items()}

    def add(name: str, term: Tensor, weight: float) -> None:
        nonlocal total
        terms[name], weighted[name] = term, weight * term
        total = total + weighted[name]

    if "recons" in method.constraints:
        add("recons", reconstruction_loss(networks.generator(healthy.image), healthy.image), loss.recons)
    if "MIL" in method.constraints and iteration > loss.mil_start:
        add("MIL", multiple_instance_loss(logits, diseased.lung, loss.mil_share), loss.mil)
    perceive = "perception" in method.constraints and iteration > loss.perception_start
    if perceive or loss.restoration:
        pasted, label = paste_lesions(diseased.image, lesion, healthy.image, healthy.lung, loss)
    if perceive:
        add("perception", focal_loss(networks.segmenter(pasted), label), loss.perception * _risen(loss, iteration))
    if loss.restoration:
        add("restoration", reconstruction_loss(networks.generator(pasted), healthy.image), loss.restoration)
    return _objective(_gated(total, method.gate.joint, method.gate), terms, weighted)


def _scaled(x: Tensor, factor: float) -> Tensor:
    """The same values, with a gradient that is multiplied by a factor."""
    return x if factor == 1 else x.detach() + factor * (x - x.detach())


def _risen(loss: LossSettings, iteration: int) -> float:
    """The share of its weight that perception has reached."""
    return min(1.0, (iteration - loss.perception_start) / loss.perception_ramp) if loss.perception_ramp else 1.0


def warm_up_objective(networks: Networks, healthy: Batch, labelled: Batch, method: Method) -> Objective:
    """Objective of the generator before D comes in (ours): healthy volumes stay as they are.

    mean|G(I_h) - I_h|
      + restoration: mean|G(I_a) - I_h|, I_a being I_h with the known lesions of I_l pasted in
    """
    loss = method.loss
    terms = {"recons": reconstruction_loss(networks.generator(healthy.image), healthy.image)}
    weighted = {"recons": loss.recons * terms["recons"]}
    if loss.restoration:
        pasted, _ = paste_lesions(labelled.image, labelled.lesion, healthy.image, healthy.lung, loss)
        terms["restoration"] = reconstruction_loss(networks.generator(pasted), healthy.image)
        weighted["restoration"] = loss.restoration * terms["restoration"]
    return _objective(sum(weighted.values()), terms, weighted)


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
    weights = {"healthy": method.loss.segmentation, "labelled": method.loss.segmentation * method.loss.labelled}
    weighted = {name: weight * terms[name] for name, weight in weights.items()}
    return _objective(_gated(total, method.gate.segmenter, method.gate), terms, weighted)


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
    judgements = _judged(networks.discriminator, judged, method.loss.instance_noise)
    terms = {
        name: adversarial_loss(judgement, HEALTHY if name == "healthy" else OTHER)
        for name, judgement in judgements.items()
    }
    weighted = dict(terms)
    total = terms["synthetic"] + terms["healthy"]
    if "origImgToD" in terms:
        weighted["origImgToD"] = _gated(terms["origImgToD"], method.gate.origimgtod, method.gate)
        total = total + weighted["origImgToD"]
    if "genImgToD" in terms:
        weighted["genImgToD"] = (1 - iteration / method.last_iteration) * terms["genImgToD"]
        total = total + weighted["genImgToD"]
    return _objective(_gated(total, method.gate.discriminator, method.gate), terms, weighted)
