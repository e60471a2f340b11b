"""Trains the pretrained segmenter on synthetic scans alone, on one thread of a CPU.

Paints the bodies (a quarter of an hour), then trains S (some two hours); every step sees one or two bodies through
a new random scanner. OUTPUT/bodies/ holds the bodies, OUTPUT/state.pth the state of the training and
OUTPUT/segmenter.pth the moving average of the weights of S, for test.py, predict.py and python -m benchmarks.patients.
The same command resumes.

Examples:
  OMP_NUM_THREADS=1 python -m benchmarks.pretrain pretrain
  OMP_NUM_THREADS=1 python -m benchmarks.pretrain pretrain --bodies 1600 --steps 7200
  OMP_NUM_THREADS=1 python -m benchmarks.pretrain one_scanner --bodies 240 --steps 500 --without scanners
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.pretrain.scans import CROP, VARIETY, draw_sample, write_body
from datasets.window import WINDOW
from evaluation.inference import autocast
from models.checkpoint import SegmenterFacts, SegmenterInput, save_segmenter
from models.layers import place
from models.segmenter import Segmenter
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.distributed import keep_freed_memory
from utils.files import atomic_write

log = logging.getLogger(__name__)

SUB_VOLUMES = (((24, 96, 96), 2), ((40, 96, 96), 1), ((40, 112, 112), 1), ((20, 160, 160), 1))
"""Sizes (z, y, x) of the sub-volumes of a step, and their number. One is drawn for each step, so that S does not
depend on the statistics of one size, which instance norm removes."""

WHOLE, WHOLE_AFTER = 0.12, 300
"""Share of the steps on a whole crop, after this many steps."""

STEPS = 3600

SAVED_EVERY = 50
RATE, LOWEST, WARM_UP = 1.5e-3, 0.02, 50
"""Highest learning rate, its lowest share, and steps to the highest at the start."""

DECAY, CLIPPED = 0.995, 5.0
"""Decay of the moving average; highest norm of the gradient."""

THRESHOLD = 0.5
"""Probability of the average, chosen on validation, that becomes 0.5 in segmenter.pth: the last bias moves."""

CPU = torch.device("cpu")


def loss_of(logits: Tensor, lesion: Tensor, lung: Tensor) -> Tensor:
    """Cross-entropy plus Dice inside the lungs."""
    cross = binary_cross_entropy_with_logits(logits, lesion, reduction="none")
    p = torch.sigmoid(logits) * lung
    dice = (2 * (p * lesion).sum() + 10) / (p.sum() + lesion.sum() + 10)
    return (cross * lung).sum() / lung.sum().clamp_min(1) + 1 - dice


def rate_at(step: int, steps: int) -> float:
    """Learning rate of a step, counted from 1: a warm-up and a half cosine."""
    share = LOWEST + (1 - LOWEST) * (1 + np.cos(np.pi * step / steps)) / 2
    return RATE * min(1, step / WARM_UP) * float(share)


class Training:
    """S, the moving average of its weights, and the optimiser.

    Args:
        width: of S.
        bodies: files of the painted bodies.
        seed: of weights and samples.
        without: variety that the samples lack, see `VARIETY`.
    """

    def __init__(self, width: int, bodies: Sequence[Path], seed: int, without: str | None = None) -> None:
        torch.manual_seed(seed)
        self.segmenter, self.average = (place(Segmenter(width), CPU).train() for _ in range(2))
        self.average.load_state_dict(self.segmenter.state_dict())
        self.optimizer = torch.optim.AdamW(self.segmenter.parameters(), weight_decay=1e-4)
        self.bodies, self.seed, self.without, self.step, self.seconds = bodies, seed, without, 0, 0.0

    def draw_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image, lesion and lung of the next step, float32 (batch, 1, z, y, x); a function of seed and step."""
        rng = np.random.default_rng([self.seed, 1, self.step])
        size, count = SUB_VOLUMES[rng.integers(len(SUB_VOLUMES))]
        if self.step > WHOLE_AFTER and rng.random() < WHOLE:
            size, count = CROP, 1
        samples = [
            draw_sample(rng, self.bodies[rng.integers(len(self.bodies))], size, self.without) for _ in range(count)
        ]
        return tuple(
            torch.from_numpy(np.stack(arrays))[:, None].contiguous(memory_format=torch.channels_last_3d)
            for arrays in zip(*samples, strict=True)
        )

    def update(self, rate: float) -> float:
        """Take one step; returns its loss."""
        image, lesion, lung = self.draw_batch()
        with autocast(CPU, "bf16"):
            logits = self.segmenter(image)
        loss = loss_of(logits.float(), lesion, lung)
        self.step += 1
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.segmenter.parameters(), CLIPPED)
        self.optimizer.step()
        decay = min(DECAY, 1 - 1 / (self.step / 4 + 1))
        with torch.no_grad():
            for average, now in zip(self.average.parameters(), self.segmenter.parameters(), strict=True):
                average.lerp_(now, 1 - decay)
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write state.pth and segmenter.pth."""
        state = {name: getattr(self, name).state_dict() for name in ("segmenter", "average", "optimizer")}
        with atomic_write(folder / "state.pth") as part:
            torch.save(state | {"step": self.step, "seconds": self.seconds}, part)
        trained_on = SegmenterInput(size=CROP, window=WINDOW, normalization="window")
        segmenter = deepcopy(self.average)
        with torch.no_grad():
            segmenter.predict.bias -= np.log(THRESHOLD / (1 - THRESHOLD))
        facts = SegmenterFacts(trained_on=trained_on, iteration=self.step)
        save_segmenter(folder / "segmenter.pth", segmenter, facts)

    def load(self, path: Path) -> None:
        """Resume from a state.pth."""
        state = torch.load(path, weights_only=True)
        for name in ("segmenter", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.pretrain")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of the training")
    parser.add_argument("--bodies", type=int, default=800, metavar="N", help="number of bodies (default 800)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"default {STEPS}")
    parser.add_argument("--width", type=int, default=16, help="width of S (default 16; published 20)")
    parser.add_argument("--seed", type=int, default=29, help="random seed (default 29)")
    parser.add_argument("--without", choices=VARIETY, help="leave this variety out, to see what it is worth")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes that paint (default 1)")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if min(options.bodies, options.width, options.processes, options.steps) < 1 or options.seed < 0:
        parser.error("--seed must be at least 0, all other numbers at least 1")
    start_logging(options.quiet)
    bodies = [options.output / "bodies" / f"{number:05d}.npz" for number in range(options.bodies)]
    with ProcessPoolExecutor(options.processes) as pool:
        n = len(bodies)
        list(pool.map(write_body, bodies, [options.seed] * n, range(n), [options.without] * n))
    torch.set_num_threads(1)
    keep_freed_memory()
    training = Training(options.width, bodies, options.seed, options.without)
    if (options.output / "state.pth").is_file():
        training.load(options.output / "state.pth")
    start, losses = time.monotonic() - training.seconds, []
    while training.step < options.steps:
        losses.append(training.update(rate_at(training.step + 1, options.steps)))
        if training.step % SAVED_EVERY == 0 or training.step == options.steps:
            training.seconds = time.monotonic() - start
            done = training.step, options.steps, training.seconds, np.mean(losses)
            log.info("step %d of %d, %.0f s, loss %.3f", *done)
            losses = []
            training.save(options.output)
    print(f"{options.output / 'segmenter.pth'}: {training.step} steps in {training.seconds / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
