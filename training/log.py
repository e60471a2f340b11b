"""The log of a run: progress bar, TensorBoard, metrics.jsonl and pictures."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid, save_image

from models.objectives import Networks, synthesise
from utils.files import atomic_write, name_in_errors, write_text
from utils.progress import progress_bar


class RunningMeans:
    """Means of the terms of the objectives since the last log entry, accumulated on the device."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, objective: str, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of a step, scalars on the device by name."""
        for name, value in terms.items():
            self._values[f"{objective}/{name}"].append(value)

    def take(self) -> dict[str, float]:
        """Return the means since the last call, by name."""
        means = {name: torch.stack(values).mean().item() for name, values in self._values.items()}
        self._values.clear()
        return means


def discriminator_balance(entry: Mapping[str, float], heads: int) -> dict[str, float]:
    """The discriminator's probability of the correct class, on healthy and on synthetic volumes, for the log.

    Near 1 on both, D dominates; near 0.5 on both, it has collapsed. It is the geometric mean exp(-BCE), BCE being the
    mean over the heads, over which the terms in `entry` are summed; nothing without a step of D.
    """
    terms = {kind: entry.get(f"discriminator/{kind}") for kind in ("healthy", "synthetic")}
    return {f"right/{kind}": math.exp(-term / heads) for kind, term in terms.items() if term is not None}


class RunLog:
    """The log of a run: progress bar, TensorBoard events, ``metrics.jsonl`` and pictures in the run's folder.

    Without a folder, nothing is logged, as by ranks other than 0. Entries after iteration `first`, which a resumed run
    repeats, are dropped.
    """

    def __init__(self, folder: Path | None, first: int, last: int, progress: bool) -> None:
        self.folder = folder
        shown = progress and folder is not None
        self.bar = progress_bar(None, "training", unit="iteration", shown=shown, total=last, initial=first)
        if folder is not None:
            self.path = folder / "metrics.jsonl"
            _drop_after(self.path, first)
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log values by name, and show the totals of the objectives beside the progress bar."""
        if self.folder is None:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, iteration)
        with name_in_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a resumed run starts from the next state, and would not repeat this entry
        shown = {name.removesuffix("/total"): f"{value:.3g}" for name, value in values.items() if "/total" in name}
        if shown:
            self.bar.set_postfix(shown, refresh=False)

    def picture(self, iteration: int, grid: Tensor) -> None:
        """Save a picture grid, (3, height, width) in [0, 1], as a file and in TensorBoard."""
        if self.folder is None:
            return
        with atomic_write(self.folder / "pictures" / f"{iteration:07d}.png") as temporary:
            save_image(grid, temporary)
        self._events.add_image("pictures", grid, iteration)

    def close(self) -> None:
        """Close the progress bar and flush TensorBoard."""
        self.bar.close()
        if self.folder is not None:
            self._events.close()


def _drop_after(path: Path, done: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["iteration"] <= done:
                kept.append(line.decode() + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed while writing
    write_text(path, "".join(kept))


@torch.no_grad()
def picture_grid(networks: Networks, image: Tensor, lung: Tensor) -> Tensor:
    """Draw the middle slice of each volume, one row per volume: I, M, I_s, I_g; (3, height, width) in [0, 1].

    Images are (n, 1, depth, height, width) in [-1, 1], and so are their lung masks, 0 or 1.
    """
    lesion = networks.segmenter(image).float().sigmoid()
    generated = networks.generator(image).float()
    synthetic = synthesise(image, lesion, lung, generated)
    columns = ((image + 1) / 2, lesion * lung, (synthetic + 1) / 2, (generated + 1) / 2)
    middle = image.shape[2] // 2
    tiles = torch.stack([column[:, :, middle] for column in columns], dim=1).flatten(0, 1)
    return make_grid(tiles.clamp(0, 1).cpu(), nrow=len(columns), padding=2, pad_value=0.5)
