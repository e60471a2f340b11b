"""Trains the pretrained segmenter on synthetic scans alone: one thread, resumable.

OUTPUT/bodies/ holds the painted bodies, OUTPUT/state.pth the state of the training, OUTPUT/segmenter.pth the moving
average of the weights. The same command resumes.

Examples:
  OMP_NUM_THREADS=1 python -m benchmarks.pretrain pretrain
  OMP_NUM_THREADS=1 python -m benchmarks.pretrain pretrain --bodies 800 --steps 6000
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.pretrain.scans import CROP, draw_sample, write_body
from models.layers import place
from models.segmenter import Segmenter
from utils.cli import new_parser, run
from utils.files import atomic_write

SIZES = (((24, 96, 96), 2), ((40, 96, 96), 1), ((40, 112, 112), 1), ((20, 160, 160), 1))
"""Size and number of the sub-volumes of a step, drawn anew for each: S learns not to depend on the statistics of a
sub-volume, which instance norm removes."""

WHOLE = 0.12
"""Share of the steps on whole crops in the last two thirds."""

VALID = 20
"""Number of the last bodies, which validate."""

DECAY = 0.995
CLIP = 5.0


def loss_of(logits: Tensor, lesion: Tensor, lung: Tensor) -> Tensor:
    """Cross-entropy plus Dice inside the lungs."""
    cross = binary_cross_entropy_with_logits(logits, lesion, reduction="none")
    p = torch.sigmoid(logits) * lung
    dice = (2 * (p * lesion).sum() + 10) / (p.sum() + lesion.sum() + 10)
    return (cross * lung).sum() / lung.sum().clamp_min(1) + 1 - dice


def rate_at(step: int, steps: int, rate: float) -> float:
    """Learning rate: a short warm-up, then cosine to a fiftieth."""
    return rate * min(1, step / 50) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / steps)))


class Training:
    """S, its moving average and the optimiser."""

    def __init__(self, width: int, rate: float) -> None:
        torch.manual_seed(0)
        device = torch.device("cpu")
        self.segmenter, self.mean = (place(Segmenter(width), device).train() for _ in range(2))
        self.mean.load_state_dict(self.segmenter.state_dict())
        self.optimizer = torch.optim.AdamW(self.segmenter.parameters(), lr=rate, weight_decay=1e-4)
        self.step, self.rate, self.seconds = 0, rate, 0.0

    def update(self, steps: int, paths: Sequence[Path], seed: int) -> float:
        """One step; returns the loss."""
        rng = np.random.default_rng([seed, 1, self.step])
        size, count = SIZES[rng.integers(len(SIZES))]
        if self.step > steps / 3 and rng.random() < WHOLE:
            size, count = CROP, 1
        samples = [draw_sample(rng, paths[rng.integers(len(paths))], size) for _ in range(count)]
        image, lesion, lung = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))[:, None]
            for name in ("image", "lesion", "lung")
        )
        image = image.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.segmenter(image)
        loss = loss_of(logits.float(), lesion, lung)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, steps, self.rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.segmenter.parameters(), CLIP)
        self.optimizer.step()
        decay = min(DECAY, 1 - 1 / (self.step / 4 + 1))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.segmenter.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write state.pth and segmenter.pth."""
        state = {"segmenter": self.segmenter.state_dict(), "mean": self.mean.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds}
        for name, value in (("state.pth", state), ("mean.pth", {"width": self.segmenter.width, "weights": state["mean"]})):
            with atomic_write(folder / name) as part:
                torch.save(value, part)

    def load(self, path: Path) -> None:
        """Resume."""
        state = torch.load(path, weights_only=True)
        self.segmenter.load_state_dict(state["segmenter"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.pretrain")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of the run")
    parser.add_argument("--bodies", type=int, default=500, help="number of painted bodies (default 500)")
    parser.add_argument("--bodies-folder", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--start", type=Path)
    options = parser.parse_args(arguments)
    folder = options.bodies_folder or options.output / "bodies"
    folder.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.npz" for number in range(options.bodies)]
    if not all(path.is_file() for path in paths):
        with ProcessPoolExecutor(options.processes) as pool:
            list(pool.map(write_body, [folder] * len(paths), [options.seed] * len(paths), range(len(paths))))
    torch.set_num_threads(1)
    training = Training(options.width, options.rate)
    if (options.output / "state.pth").is_file():
        training.load(options.output / "state.pth")
    elif options.start:
        training.load(options.start)
        training.step = 0
    start, losses = time.monotonic() - training.seconds, []
    while training.step < options.steps:
        losses.append(training.update(options.steps, paths[VALID:], options.seed))
        training.seconds = time.monotonic() - start
        if training.step % 50 == 0 or training.step == options.steps:
            print(f"step {training.step}, {training.seconds:.0f} s, loss {np.mean(losses):.3f}", flush=True)
            losses = []
            training.save(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
