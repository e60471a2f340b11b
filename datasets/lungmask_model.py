"""Lung segmentation with the trained network of the package lungmask (model R231)."""

import contextlib
import logging
import socket
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk

from utils.errors import VolumeError, one_line
from utils.torch_files import TorchFileError, read_torch_file

LUNG_MODELS = ("R231", "R231CovidWeb")
LUNG_CLASSES = 3  # background, right, left
NETWORK_TIMEOUT_S = 20.0

Array = np.ndarray


@contextlib.contextmanager
def _short_timeout() -> Iterator[None]:
    """Make network connections fail after ``NETWORK_TIMEOUT_S`` instead of hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fetch_weights(model: str, url: str) -> Path:
    """Return the model's weight file in torch's cache, which lungmask shares; download it if missing."""
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if cached.parts[0] == "~":
        raise VolumeError(
            "lungmask's weights have no cache folder because this user has no home; set TORCH_HOME to a writable "
            "folder, or pass a local file with --weights FILE"
        )
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _short_timeout():
            torch.hub.download_url_to_file(url, str(cached), progress=False)
    except (OSError, RuntimeError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = one_line(error)
        raise VolumeError(
            f"lungmask's weights for {model} cannot be downloaded ({reason}); pass a local file with "
            "--weights FILE, or use --lungs threshold, which needs no network"
        ) from error
    return cached


def _read_weights(path: Path) -> dict[str, Any]:
    """Read and check weights for lungmask's network.

    Raises:
        VolumeError: the file is missing, damaged or unsafe, or belongs to another network.
    """
    import torch
    from lungmask.resunet import UNet

    if not path.is_file():
        raise VolumeError(f"{path}: no such file; --weights needs a weight file of lungmask's model R231")
    try:
        state = read_torch_file(path)
    except TorchFileError as error:
        raise VolumeError(f"{path}: {error}; download lungmask's R231 weights again") from None
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(v) for v in state.values()):
        raise VolumeError(f"{path}: holds no network weights (expected a state dict of tensors)")
    last = list(state.values())[-1]
    classes = len(last) if last.ndim else 0
    if classes != LUNG_CLASSES:
        raise VolumeError(
            f"{path}: its network has {classes} classes, not {LUNG_CLASSES} (background, right, left); "
            "lobe models do not fit, use R231"
        )
    with torch.device("meta"):
        expected = UNet(
            n_classes=LUNG_CLASSES, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False
        ).state_dict()
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in state.items()}:
        raise VolumeError(f"{path}: the weights belong to another network, not to lungmask's U-Net")
    return state


def load_lungmask(
    model: str = "R231", weights: Path | None = None, force_cpu: bool = False, batch_size: int = 20
) -> Callable[[sitk.Image], Array]:
    """Load lungmask's network.

    Args:
        model: ``R231`` or ``R231CovidWeb``. ``LTRCLobes`` is rejected because it labels lobes, not lungs.
        weights: local weight file (a state dict saved by torch), which overrides ``model``. By default the weights
            come from torch's cache and are downloaded into it when missing.
        force_cpu: do not use a GPU even if one is available.
        batch_size: slices per forward pass; lower it if the GPU runs out of memory.

    Returns:
        A function that maps a CT in HU (any orientation) to labels on the CT's grid: uint8 (z, y, x), 0 background,
        1 right, 2 left lung. It raises VolumeError if it finds no lung.

    Raises:
        VolumeError: the model is unknown or labels lobes, the weights cannot be downloaded, or the weight file is
            damaged, unsafe or of another network.
    """
    import torch

    if model not in LUNG_MODELS:
        raise VolumeError(
            f"lungmask model {model!r} does not label right and left lung; use {' or '.join(LUNG_MODELS)}"
        )
    with warnings.catch_warnings():  # importing lungmask silences warnings for the whole process
        from lungmask import mask as lungmask
    logging.getLogger("lungmask").setLevel(logging.WARNING)

    path = Path(weights) if weights is not None else _fetch_weights(model, lungmask.MODEL_URLS[model][0])
    with TemporaryDirectory() as folder:
        checked = Path(folder) / path.name  # lungmask reads a file: give it the checked weights
        torch.save(_read_weights(path), checked)
        inferer = lungmask.LMInferer(
            modelname=model, modelpath=str(checked), force_cpu=force_cpu, batch_size=batch_size, tqdm_disable=True
        )

    def segment(ct: sitk.Image) -> Array:
        labels = np.asarray(inferer.apply(ct), dtype=np.uint8)
        if not labels.any():
            raise VolumeError("no lung found in the CT by lungmask; is it a chest CT in HU?")
        return labels

    return segment
