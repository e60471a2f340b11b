"""Iterations of training, and S on a scan, in the published way and in ours, with each choice of ours on and off.

What is chosen: bfloat16 where the device has it, the channels-last layout on CPUs, and there OpenVINO for S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from configs.settings import Settings, read_settings
from datasets.samples import Batch
from models.engine import Engine
from models.layers import autocast, computes_bfloat16, place
from models.objectives import Method, build_networks, discriminator_objective, joint_objective, segmenter_objective
from models.segmenter import Segmenter
from training.optimise import build_optimizers, gradients, guarded_step

Ways = Mapping[str, Callable[[], Any]]

_ALL_TERMS = ["EXP.ID=recons_origImgToD_genImgToD_perception_MIL", "LOSS={MIL_START: 0, PERCEPTION_START: 0}"]
_DEMO = ["IMAGE.SIZE=[16, 64, 64]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 8, G: 8, D: 8}", "SOLVER.BATCH_SIZE=2"]


class OneByOne(nn.Module):
    """Calls D once per batch instead of once for all, like the published code."""

    def __init__(self, discriminator: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.batch_size = batch_size

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all batches."""
        return torch.cat([self.discriminator(batch) for batch in x.split(self.batch_size)])


class Training:
    """One iteration of each phase, on the same random batches each time.

    Args:
        settings: sizes, widths and losses.
        device: that computes.
        published: as the published code computes: float32 (TF32 on GPUs), contiguous, one call of D per batch, and
            every loss read at every step.
        channels_last: the memory layout; None: the one chosen for the device.
        precision: SOLVER.PRECISION.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        published: bool = False,
        channels_last: bool | None = None,
        precision: str = "bf16",
    ) -> None:
        torch.manual_seed(0)
        image, width, self.volumes = settings.image, settings.model.width, settings.solver.batch_size
        self.shape = (self.volumes, 1, image.slices, *image.size[1:])
        self.published, self.device, self.steps = published, device, settings.solver.discriminator_steps
        self.method = Method(settings.exp.constraints, settings.solver.iter_max, settings.loss, settings.gate)
        networks = build_networks((width.unet, width.g, width.d), self.shape[2:]).to(device, channels_last)
        self.optimizers = build_optimizers(networks, settings.solver)
        if published:
            networks = networks._replace(discriminator=OneByOne(networks.discriminator, self.volumes))
        self.networks = networks
        self.context: Callable[[], AbstractContextManager] = (
            nullcontext if published else lambda: autocast(device, precision)
        )
        self.diseased, self.healthy, self.labelled = (self._batch(seed) for seed in range(3))

    def _batch(self, seed: int) -> Batch:
        random = torch.Generator().manual_seed(seed)
        image = (torch.rand(self.shape, generator=random) * 2 - 1).to(self.device)
        return Batch(image, torch.ones_like(image), (image > 0.9).float())

    def step(self, objective: Callable[..., Any], first: Batch, second: Batch, *trains: str) -> None:
        """Take one optimiser step."""
        for name, network in self.networks._asdict().items():
            network.requires_grad_(self.published or name in trains)
        optimizers = [self.optimizers[name] for name in trains]
        for optimizer in self.optimizers.values() if self.published else optimizers:
            optimizer.zero_grad()
        with self.context():
            value = objective(self.networks, first, second, self.method, 1)
        value.total.backward()
        if self.published:
            for optimizer in optimizers:
                optimizer.step()
            _ = [term.item() for term in value.terms.values()]
        else:
            gradients(optimizers)
            guarded_step(optimizers, value.total.detach())

    def joint(self) -> None:
        """An iteration of S and G."""
        self.step(joint_objective, self.diseased, self.healthy, "segmenter", "generator")
        self.step(segmenter_objective, self.healthy, self.labelled, "segmenter")

    def discriminate(self) -> None:
        """An iteration of D."""
        for _ in range(self.steps):
            self.step(discriminator_objective, self.diseased, self.healthy, "discriminator")


def choices(device: torch.device) -> dict[str, dict[str, Any]]:
    """The ways to compare, by name: the published one, ours, and ours with one choice turned over."""
    last = device.type == "cpu"
    ways: dict[str, dict[str, Any]] = {"published": {"published": True, "channels_last": False}, "ours": {}}
    ways["ours, contiguous" if last else "ours, channels last"] = {"channels_last": not last}
    if computes_bfloat16(device):
        ways["ours, float32"] = {"precision": "fp32"}
    return ways


def training(device: torch.device, quick: bool) -> Iterator[tuple[str, Ways]]:
    """Iterations of both phases at the published size, batch 1 on CPUs, and at that of the demo."""
    batch = 4 if device.type == "cuda" else 1
    sizes = {} if quick else {f"32x160x160, batch {batch}": [f"SOLVER.BATCH_SIZE={batch}"]}
    for size, overrides in {**sizes, "16x64x64, widths 8, batch 2": _DEMO}.items():
        settings = read_settings(None, [*_ALL_TERMS, *overrides])
        ways = {name: Training(settings, device, **choice) for name, choice in choices(device).items()}
        yield f"{size}: iteration of S and G", {name: way.joint for name, way in ways.items()}
        yield f"{size}: iteration of D", {name: way.discriminate for name, way in ways.items()}


def segmenter(device: torch.device, quick: bool) -> Iterator[tuple[str, Ways]]:
    """S on one scan."""
    size = (16, 64, 64) if quick else (40, 160, 160)
    volume = torch.rand(1, 1, *size, device=device) * 2 - 1
    ways: dict[str, Callable[[], Any]] = {}
    for name, choice in choices(device).items():
        network = place(Segmenter(), device, choice.get("channels_last")).eval()
        precision = "fp32" if choice.get("published") else choice.get("precision", "bf16")

        def forward(network: nn.Module = network, precision: str = precision) -> None:
            with torch.inference_mode(), autocast(device, precision):
                network(volume)

        ways[name] = forward
    if device.type == "cpu":
        engine = Engine(network)
        ways[engine.way] = lambda: engine(volume)
    yield f"S on {'x'.join(map(str, size))}", ways
