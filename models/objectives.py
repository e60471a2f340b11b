"""The objective of each training step: how networks and losses are combined.

Symbols: I a diseased volume, I_h a healthy one, I_l a voxel-labelled one with lesion mask Y, M = S(I), I_g = G(I),
L the lung mask, I_s the synthetic volume. All objectives take the networks, two batches of as many volumes, with lung
masks, the method, and the iteration t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from models.discriminator import Discriminator
from models.generator import Generator
from models.layers import place
from models.losses import (
    HEALTHY,
    IGNORED,
    OTHER,
    Gate,
    Gates,
    Weights,
    adversarial_loss,
    focal_loss,
    lung_cross_entropy,
    lung_dice_loss,
    multiple_instance_loss,
    reconstruction_loss,
    weighted_focal_loss,
)
from models.segmenter import build_segmenter
from utils import distributed

if TYPE_CHECKING:
    from datasets.samples import Batch


class Networks(NamedTuple):
    """The three networks; S is any module that maps volumes to logits."""

    segmenter: nn.Module
    generator: Generator
    discriminator: Discriminator

    def to(self, device: torch.device, channels_last: bool | None = None) -> Networks:
        """Move the networks to a device, in a memory layout (see `place`)."""
        return Networks(*(place(network, device, channels_last) for network in self))


def build_networks(widths: tuple[int, int, int], input_size: tuple[int, int, int], heads: int = 1) -> Networks:
    """Build the networks with random weights, by the widths of S, G and D, and the input size and heads of D."""
    segmenter, generator, discriminator = widths
    return Networks(build_segmenter(segmenter), Generator(generator), Discriminator(discriminator, input_size, heads))


@dataclass(frozen=True)
class Method:
    """The choices of an experiment: constraint losses that are on, last iteration, weights and gates."""

    constraints: frozenset[str]
    last_iteration: int
    loss: Weights = field(default_factory=Weights)
    gate: Gates = field(default_factory=Gates)


class Objective:
    """A value to minimise: the gated sum of weighted terms; the name is that in the log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.terms: dict[str, Tensor] = {}  # by name, unweighted and without gradient
        self.weighted: dict[str, Tensor] = {}  # by name, with their weight and gradient
        self.total: Tensor | None = None  # the sum of `weighted`, gated

    def add(self, name: str, term: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add a term, a scalar, times its weight."""
        self.terms[name], self.weighted[name] = term.detach(), weight * term

    def gated(self, gate: Gate, gates: Gates) -> Objective:
        """Set the total: the sum of the terms, scaled down while it is below its gate."""
        total = sum(self.weighted.values())
        self.total = _gate_factor(total, gate, gates) * total
        return self


def synthesise(image: Tensor, lesion: Tensor, lung: Tensor, generated: Tensor) -> Tensor:
    """Compose the synthetic volume: the generated volume inside the lesion, the original elsewhere.

    I_s = M L I_g + (1 - M L) I, volumes in [-1, 1]
    """
    inside = lesion * lung
    return inside * generated + (1 - inside) * image


def paste_lesions(
    image: Tensor, lesion: Tensor, healthy: Tensor, healthy_lung: Tensor, loss: Weights
) -> tuple[Tensor, Tensor]:
    """Paste predicted lesions into healthy lungs, and derive the labels of the result.

    m = M L_h; I_a = I_h (1 - m) + I m; Y_a = 1 where m > perception_lesion, ignored where
    perception_background < m <= perception_lesion, 0 elsewhere. No gradient flows through m. Returns I_a and Y_a.
    """
    m = lesion.detach() * healthy_lung
    label = (m > loss.perception_lesion).float()
    uncertain = (m > loss.perception_background) & (m <= loss.perception_lesion)
    return healthy * (1 - m) + image * m, label.masked_fill(uncertain, IGNORED)


def _gate_factor(value: Tensor, gate: Gate, gates: Gates) -> float | Tensor:
    if not gates.enabled:
        return 1.0
    over_ranks = distributed.sum_over_ranks(value) / distributed.world_size()
    return torch.where(over_ranks < gate.below, gate.factor, 1.0)


def _together(network: Callable[[Tensor], Tensor], *images: Tensor) -> Sequence[Tensor]:
    """Outputs of a network for several batches, from one forward pass: fewer and larger kernels than one pass each."""
    return network(torch.cat(images)).split([len(image) for image in images])


def _judge(discriminator: Discriminator, volumes: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Logits of each head of D by name, from one forward pass, so that its weights are normalised only once."""
    logits = discriminator(torch.cat(list(volumes.values())))
    heads = logits if isinstance(logits, tuple) else (logits,)
    by_volume = zip(*(head.chunk(len(volumes)) for head in heads), strict=True)
    return dict(zip(volumes, by_volume, strict=True))


def joint_objective(networks: Networks, diseased: Batch, healthy: Batch, method: Method, iteration: int) -> Objective:
    """Objective of generator and segmenter: the synthetic volume should be classified as healthy.

    BCE(D(I_s), healthy)
      + genImgToD:  BCE(D(I_g), healthy)
      + recons:     mean|G(I_h) - I_h|
      + MIL:        a diseased volume has a lesion somewhere; after `loss.mil_start`
      + perception: F(S(I_a), Y_a); after `loss.perception_start`, rising over `loss.perception_ramp`
    """
    loss = method.loss
    logits = networks.segmenter(diseased.image).float()
    lesion = logits.sigmoid()
    if "recons" in method.constraints:
        generated, repeated = _together(networks.generator, diseased.image, healthy.image)
    else:
        generated, repeated = networks.generator(diseased.image), None
    generated = generated.float()
    inside = _scale_gradient(lesion, loss.adversarial_segmenter)
    judged = {"adversarial": synthesise(diseased.image, inside, diseased.lung, generated)}
    if "genImgToD" in method.constraints:
        judged["genImgToD"] = generated

    objective = Objective("joint")
    for name, judgement in _judge(networks.discriminator, judged).items():
        objective.add(name, adversarial_loss(judgement, HEALTHY), loss.adversarial)
    if repeated is not None:
        objective.add("recons", reconstruction_loss(repeated, healthy.image), loss.recons)
    if "MIL" in method.constraints and iteration > loss.mil_start:
        objective.add("MIL", multiple_instance_loss(logits, diseased.lung), loss.mil)
    if "perception" in method.constraints and iteration > loss.perception_start:
        pasted, label = paste_lesions(diseased.image, lesion, healthy.image, healthy.lung, loss)
        weight = loss.perception * _risen(iteration - loss.perception_start, loss.perception_ramp)
        objective.add("perception", focal_loss(networks.segmenter(pasted), label), weight)
    return objective.gated(method.gate.joint, method.gate)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x unchanged, with its gradient multiplied by a factor."""
    return x if factor == 1 else x.detach() + factor * (x - x.detach())


def _risen(since: int, ramp: int) -> float:
    """The share of its full weight that a term has some iterations after its start."""
    return min(1.0, since / ramp) if ramp else 1.0


def segmenter_objective(
    networks: Networks, healthy: Batch, labelled: Batch, method: Method, iteration: int
) -> Objective:
    """Objective of the segmenter alone: no lesion in healthy volumes, the labelled ones in labelled volumes.

    segmentation * [healthy * F(S(I_h), 0) + labelled * FL(S(I_l), Y)]

    With the segmentation loss ``cross_entropy_dice``, F is the cross-entropy inside the lungs, and FL the sum of that
    and the Dice loss. I_h is not used if its weight is 0.
    """
    loss = method.loss
    focal = loss.segmentation_loss == "focal"
    objective = Objective("segmenter")
    if loss.healthy:
        empty, logits = _together(networks.segmenter, healthy.image, labelled.image)
        none = torch.zeros_like(empty)
        term = focal_loss(empty, none) if focal else lung_cross_entropy(empty, none, healthy.lung)
        objective.add("healthy", term, loss.segmentation * loss.healthy)
    else:
        logits = networks.segmenter(labelled.image)
    if focal:
        term = weighted_focal_loss(logits, labelled.lesion)
    else:
        wanted = labelled.lesion, labelled.lung
        term = lung_cross_entropy(logits, *wanted) + lung_dice_loss(logits, *wanted)
    objective.add("labelled", term, loss.segmentation * loss.labelled)
    return objective.gated(method.gate.segmenter, method.gate)


def discriminator_objective(
    networks: Networks, diseased: Batch, healthy: Batch, method: Method, iteration: int
) -> Objective:
    """Objective of the discriminator: separate healthy volumes from all others.

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

    objective = Objective("discriminator")
    for name, judgement in _judge(networks.discriminator, judged).items():
        term, weight = adversarial_loss(judgement, HEALTHY if name == "healthy" else OTHER), 1.0
        if name == "origImgToD":
            weight = _gate_factor(term, method.gate.origimgtod, method.gate)
        elif name == "genImgToD":
            weight = 1 - iteration / method.last_iteration
        objective.add(name, term, weight)
    return objective.gated(method.gate.discriminator, method.gate)
