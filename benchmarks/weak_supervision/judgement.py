"""How the discriminator judges held-out volumes: which kinds can it tell from healthy ones?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from configs.settings import Settings
from datasets.cohort import Case, read_volumes
from datasets.samples import scan_input
from models.discriminator import Discriminator
from models.layers import autocast
from models.objectives import Networks, synthesise


@torch.no_grad()
def judge(networks: Networks, cohort: Mapping[str, Sequence[Case]], settings: Settings) -> dict[str, float]:
    """The area under the ROC curve of D's logits for each kind of volume against the healthy volumes.

    1: D tells them apart, 0.5: it cannot, below: they look healthier to D than healthy volumes do. The middle
    IMAGE.SLICES slices of each scan are judged. The kinds are ``original`` I, ``synthetic`` I_s, ``true_lesion`` and
    ``whole_lung`` (I_s with the true mask and the lung mask instead of M), ``generated`` I_g, and ``reconstructed``
    G(I_h).

    Args:
        networks: S, G and D.
        cohort: cases by key of DATASET.SPLIT; VALID and VALIDH are used.
        settings: slices, normalization and precision.

    Returns:
        Areas by log name, ``auc/<kind>``; nothing without diseased and healthy scans.
    """
    logits: dict[str, list[float]] = {}
    training = networks.discriminator.training
    networks.discriminator.eval()  # spectral normalisation changes its state otherwise
    for split in ("VALID", "VALIDH"):
        for case in cohort.get(split, ()):
            for kind, volume in _volumes(networks, case, split, settings):
                logits.setdefault(kind, []).append(_logit(networks.discriminator, volume, settings))
    networks.discriminator.train(training)
    healthy = logits.pop("healthy", [])
    if not healthy or "original" not in logits:
        return {}
    pairs = {kind: len(found) * len(healthy) for kind, found in logits.items()}
    return {f"auc/{kind}": mannwhitneyu(logits[kind], healthy).statistic / pairs[kind] for kind in logits}


def _volumes(networks: Networks, case: Case, split: str, settings: Settings) -> Iterator[tuple[str, Tensor]]:
    """The kinds of volumes made of a scan, with their names."""
    device = next(networks.discriminator.parameters()).device
    volumes, slices = read_volumes(case), settings.image.slices
    first = (settings.image.size[0] - slices) // 2

    def middle(volume: Tensor) -> Tensor:
        return volume[:, :, first : first + slices].to(device)

    image = middle(scan_input(volumes, settings.image.normalization))
    with autocast(device, settings.solver.precision):
        generated = networks.generator(image).float()
        if split == "VALIDH":
            yield "healthy", image
            yield "reconstructed", generated
            return
        found = networks.segmenter(image).float().sigmoid()
    lung, lesion = (middle(torch.from_numpy(mask)[None, None].float()) for mask in (volumes.lung, volumes.lesion))
    yield "original", image
    yield "generated", generated
    for kind, mask in (("synthetic", found), ("true_lesion", lesion), ("whole_lung", lung)):
        yield kind, synthesise(image, mask, lung, generated)


def _logit(discriminator: Discriminator, volume: Tensor, settings: Settings) -> float:
    """D's logit of a volume; with two heads, the sum of the logit and the mean patch logit."""
    with autocast(volume.device, settings.solver.precision):
        heads = discriminator(volume)
    return sum(head.float().mean().item() for head in ((heads,) if isinstance(heads, Tensor) else heads))
