"""The two kinds of checkpoint: a segmenter to use, and a state from which training goes on.

Both are written whole or not at all, and read without running anything that is in them.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import CheckpointError
from models import Generator, Segmenter, load_published
from models.published import is_published
from whole_files import replacing

log = logging.getLogger(__name__)

SEGMENTER_FORMAT = "GASNet segmenter"
STATE_FORMAT = "GASNet training state"
VERSION = 1

_KEPT_STATES = 2


@dataclass(frozen=True)
class SegmenterInput:
    """What a segmenter was trained on, so that it can be used without the settings of its training.

    Attributes:
        size: (z, y, x) of the crops.
        window: HU that became 0 and 255 in the crops.
        normalization: IMAGE.NORMALIZATION.
    """

    size: tuple[int, int, int]
    window: tuple[float, float]
    normalization: str


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the file appears whole or, when anything fails, what stood there before stays.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            torch.save(dict(content), temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); check the folder and the disk") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint such as segmenter_best.pth")
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: not a checkpoint, or one that holds more than tensors and plain values, which is never run; "
            "save the state_dict alone"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # what is not a checkpoint makes the reader raise whatever comes to it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason}); copy the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}; expected a checkpoint")
    if content.get("format") in (SEGMENTER_FORMAT, STATE_FORMAT) and content.get("version") != VERSION:
        raise CheckpointError(f"{path}: has version {content.get('version')}, this code reads {VERSION}; update it")
    return content


def _check_sums(path: Path) -> None:
    """Compare the checksums in a checkpoint with its contents, which torch.load does not do."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: damaged at {damaged}; copy the file again")


def save_segmenter(
    path: Path, segmenter: Segmenter, trained_on: SegmenterInput, iteration: int, valid_dice: float | None
) -> None:
    """Write a segmenter for use.

    Args:
        path: of the file.
        segmenter: S.
        trained_on: kept with it.
        iteration: of its training.
        valid_dice: on the validation scans, None where there was no validation.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {
        "format": SEGMENTER_FORMAT,
        "version": VERSION,
        "width": segmenter.width,
        "input": asdict(trained_on),
        "iteration": iteration,
        "valid_dice": valid_dice,
        "weights": segmenter.state_dict(),
    }
    save(content, path)


def load_segmenter(path: Path, default: SegmenterInput) -> tuple[Segmenter, SegmenterInput]:
    """A segmenter from a file of ours (of either kind), or from a published ``checkpointU_*.pth``.

    Args:
        path: of the file.
        default: what a published segmenter, which does not say it, is taken to be trained on; so is a training state.

    Returns:
        The segmenter on the CPU, and what it was trained on.

    Raises:
        CheckpointError: the file cannot be read or is not a segmenter's.
    """
    content = load(path)
    trained_on = default
    if content.get("format") == SEGMENTER_FORMAT:
        given = content["input"]
        trained_on = SegmenterInput(tuple(given["size"]), tuple(given["window"]), given["normalization"])
    weights = _weights(content, "segmenter")
    first = _first_of(weights, "stem.0.weight", "conv.weight")
    if first is None:
        raise CheckpointError(f"{path}: not the weights of a segmenter; its first entry is {next(iter(weights), None)}")
    segmenter = Segmenter(first.shape[0])
    _fill(segmenter, weights, path)
    return segmenter, trained_on


def load_generator(path: Path) -> Generator:
    """A generator from one of our training states, or from a published ``checkpointG_*.pth``.

    Raises:
        CheckpointError: the file cannot be read or is not a generator's.
    """
    weights = _weights(load(path), "generator")
    first = _first_of(weights, "encode1.0.weight", "conv1.0.weight")
    if first is None or first.shape[1] != 1:
        raise CheckpointError(f"{path}: not the weights of a generator; use state_*.pth or a checkpointG_*.pth")
    generator = Generator(first.shape[0])
    _fill(generator, weights, path)
    return generator


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a file of ours or from a published checkpoint.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit.
    """
    kind = type(network).__name__.lower()
    content = load(path)
    if content.get("format") == SEGMENTER_FORMAT and kind != "segmenter":
        raise CheckpointError(f"{path}: holds a segmenter alone; for the {kind} use a state_*.pth")
    _fill(network, _weights(content, kind), path)


def _weights(content: Mapping[str, Any], network: str) -> Mapping[str, Tensor]:
    """The state dict of one network; a file that is neither of ours is taken for a published state dict."""
    if content.get("format") == STATE_FORMAT:
        return content["networks"][network]
    if content.get("format") == SEGMENTER_FORMAT:
        return content["weights"]
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _first_of(weights: Mapping[str, Tensor], ours: str, published: str) -> Tensor | None:
    """The weight of the first convolution, whose shape tells the width, under our name or the published one."""
    return next((weights[name] for name in (ours, published, f"module.{published}") if name in weights), None)


def _fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        if is_published(network, weights):
            load_published(network, weights)
        else:
            network.load_state_dict(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not fit ({reason}); check MODEL.WIDTH and IMAGE.SLICES") from None


def save_state(folder: Path, content: Mapping[str, Any], iteration: int) -> Path:
    """Write a training state as ``state_<iteration>.pth`` and remove all but the last two.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = folder / f"state_{iteration:07d}.pth"
    save({"format": STATE_FORMAT, "version": VERSION, "iteration": iteration, **content}, path)
    for old in find_states(folder)[_KEPT_STATES:]:
        old.unlink(missing_ok=True)
    return path


def find_states(folder: Path) -> list[Path]:
    """The training states in a folder, the latest first."""
    return sorted(folder.glob("state_*.pth"), reverse=True)


def load_latest_state(folder: Path) -> dict[str, Any]:
    """The latest training state that can be read; a damaged one is named and passed over.

    Raises:
        CheckpointError: there is none.
    """
    for path in find_states(folder):
        try:
            content = load(path)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        if content.get("format") == STATE_FORMAT:
            return content
        log.warning("%s: not a training state", path)
    raise CheckpointError(f"{folder}: no training state to resume from; start without --resume")
