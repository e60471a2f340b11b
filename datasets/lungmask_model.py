"""Lung segmentation with the trained network of the package lungmask (model R231)."""

import logging
import warnings
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from datasets.geometry import lps_view, shape_of
from datasets.lungmask_steps import SIZE, body_boxes, clean, prepare_slice, resize_nearest
from models.checkpoint import read_torch_file
from models.engine import Engine, precision_of_lungs
from utils.distributed import choose_device
from utils.errors import CheckpointError, VolumeError, one_line
from utils.files import atomic_write
from utils.progress import progress_bar

log = logging.getLogger(__name__)

LUNG_MODELS = ("R231", "R231CovidWeb")
ARCHITECTURE = {
    "n_classes": 3,  # background, right, left
    "padding": True,
    "depth": 5,
    "up_mode": "upsample",
    "batch_norm": True,
    "residual": False,
}
GPU_BATCH = 32
"""Slices per forward pass on a GPU; half of it, and so on, where they do not fit."""
NETWORK_TIMEOUT_S = 20.0

Array = np.ndarray


def _fetch_weights(model: str, url: str) -> Path:
    """Return the model's weight file in torch's cache, which lungmask shares; download it if missing."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if cached.parts[0] == "~":
        raise VolumeError(
            "lungmask's weights have no cache folder because this user has no home; set TORCH_HOME to a writable "
            "folder, or pass a local file with --weights FILE"
        )
    if cached.is_file():
        return cached
    try:
        with urlopen(url, timeout=NETWORK_TIMEOUT_S) as answer, atomic_write(cached) as temporary:
            temporary.write_bytes(answer.read())
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = one_line(error)
        raise VolumeError(
            f"lungmask's weights for {model} cannot be downloaded ({reason}); pass a local file with "
            "--weights FILE, or use --lungs threshold, which needs no network"
        ) from error
    return cached


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load weights into lungmask's network.

    Raises:
        VolumeError: the file is missing, damaged or unsafe, or belongs to another network.
    """
    if not path.is_file():
        raise VolumeError(f"{path}: no such file; --weights needs a weight file of lungmask's model R231")
    try:
        network.load_state_dict(read_torch_file(path))
    except CheckpointError as error:
        raise VolumeError(f"{error}, or download lungmask's R231 weights again") from None
    except (AttributeError, RuntimeError, TypeError) as error:  # RuntimeError: other names or shapes
        raise VolumeError(
            f"{path}: not the weights of lungmask's R231 ({one_line(error)}); models of lobes do not fit"
        ) from None


class Lungmask:
    """Finds lungs by lungmask's network; the labels are those of `lungmask.LMInferer`."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        self.device, self.engine = device, Engine(network.to(device), precision)
        self._batch = 1 if device.type == "cpu" else GPU_BATCH

    @property
    def way(self) -> str:
        """What computes, see `Engine.way`."""
        return self.engine.way

    def __call__(self, ct: sitk.Image) -> Array:
        """Label the lungs of a CT in HU, in any orientation: uint8 (z, y, x), 0 background, 1 right, 2 left lung.

        Raises:
            VolumeError: no lung was found.
        """
        hu = lps_view(sitk.GetArrayViewFromImage(ct), ct)
        boxes, found = body_boxes(hu), np.zeros((len(hu), SIZE, SIZE), np.uint8)
        shown, done = log.isEnabledFor(logging.INFO), 0
        with progress_bar(None, "finding lungs", unit="slice", total=len(hu), shown=shown, leave=False) as bar:
            while done < len(hu):
                part = slice(done, done + self._batch)
                slices = [prepare_slice(plane[box]) for plane, box in zip(hu[part], boxes[part], strict=True)]
                try:
                    found[part] = self._label(np.stack(slices))
                except torch.OutOfMemoryError:
                    if self._batch == 1:
                        raise
                    self._batch //= 2
                    continue
                done += len(slices)
                bar.update(len(slices))
        labels = np.zeros(shape_of(ct), np.uint8)
        for plane, small, box in zip(lps_view(labels, ct), clean(found), boxes, strict=True):
            plane[box] = resize_nearest(small, plane[box].shape)
        if not labels.any():
            raise VolumeError("no lung found in the CT by lungmask; is it a chest CT in HU?")
        return labels

    @torch.inference_mode()
    def _label(self, slices: Array) -> Array:
        scores = self.engine(torch.from_numpy(slices[:, None]).to(self.device))
        return scores.max(1).indices.byte().cpu().numpy()  # argmax is 15 times as slow on a CPU


def load_lungmask(
    model: str = "R231", weights: Path | None = None, device: torch.device | None = None, precision: str = "auto"
) -> Lungmask:
    """Load lungmask's network.

    Its weights come from a local file, a state dict saved by torch, whatever the model; by default, those of one of
    `LUNG_MODELS` come from torch's cache, and are downloaded into it when missing. The device is a GPU if there is one.
    Precisions are those of `precision_of_lungs`.

    Raises:
        VolumeError: the model is unknown or labels lobes, the weights cannot be downloaded, or the weight file is
            damaged, unsafe or of another network.
    """
    if model not in LUNG_MODELS:
        raise VolumeError(
            f"lungmask model {model!r} does not label right and left lung; use {' or '.join(LUNG_MODELS)}"
        )
    with warnings.catch_warnings():  # importing lungmask silences warnings for the whole process
        from lungmask.mask import MODEL_URLS, UNet

    path = Path(weights) if weights is not None else _fetch_weights(model, MODEL_URLS[model][0])
    device = choose_device("auto") if device is None else device
    network = UNet(**ARCHITECTURE)
    _load_weights(network, path)
    return Lungmask(network, device, precision_of_lungs(precision, device))
