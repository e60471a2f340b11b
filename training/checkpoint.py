"""The two kinds of checkpoint: a segmenter to use, and a state from which training goes on.

Both are written whole or not at all, and read without running anything that is in them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor, nn

from models import Generator, Segmenter, load_published
from models.published import is_published, without_wrappers
from utils.checksums import check_listed
from utils.errors import CheckpointError, one_line
from utils.files import atomic_write
from utils.torch_files import TorchFileError, read_torch_file

log = logging.getLogger(__name__)

SEGMENTER_FORMAT = "GASNet segmenter"
STATE_FORMAT = "GASNet training state"
VERSION = 1

BEST, LAST, RELEASED = "segmenter_best.pth", "segmenter_last.pth", "segmenter.pth"
"""Names of a segmenter in the folder of a run (by validation, and of the last save) and in a release."""

NETWORKS = "networks.pth"
"""Name of S, G and D of a training state in a release."""

_KEPT_STATES = 2
_WIDEST = 1024


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


@dataclass(frozen=True)
class Training:
    """What a segmenter was trained on and with, as its model card tells it. No ids of scans, no paths.

    Attributes:
        cohort: name of the cohort's folder.
        scans: number of scans by key of DATASET.SPLIT.
        settings: of the experiment, as YAML.
        device: that it was trained on.
        versions: of what trained it, by name.
    """

    cohort: str
    scans: Mapping[str, int]
    settings: str
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class SegmenterFacts:
    """What the file of a segmenter says about it; None where it does not.

    Attributes:
        trained_on: what goes into it.
        iteration: of its training.
        valid_dice: on the validation scans.
        training: what it was trained on and with.
    """

    trained_on: SegmenterInput | None
    iteration: int | None = None
    valid_dice: float | None = None
    training: Training | None = None


class _Entries(BaseModel):
    """What a file of ours must hold; entries that later versions may add are let pass."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class _InputEntries(_Entries):
    size: tuple[PositiveInt, PositiveInt, PositiveInt]
    window: tuple[float, float]
    normalization: Literal["minmax", "window"]


class _TrainingEntries(_Entries):
    cohort: str
    scans: dict[str, NonNegativeInt]
    settings: str
    device: str
    versions: dict[str, str]


class _SegmenterEntries(_Entries):
    input: _InputEntries
    weights: dict[str, Tensor]
    iteration: NonNegativeInt | None = None
    valid_dice: float | None = None
    training: _TrainingEntries | None = None


class _NetworkEntries(_Entries):
    segmenter: dict[str, Tensor]
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]


class _StateEntries(_Entries):
    networks: _NetworkEntries


class _OptimizerEntries(_Entries):
    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class _RandomEntries(_Entries):
    python: tuple[Any, ...]
    torch: Tensor
    cuda: list[Tensor]


class _ResumableEntries(_StateEntries):
    optimizers: dict[str, _OptimizerEntries]
    random: _RandomEntries
    position: dict[str, NonNegativeInt]
    iteration: NonNegativeInt
    best_dice: float | None
    skipped: NonNegativeInt
    settings: str


_ENTRIES = {SEGMENTER_FORMAT: _SegmenterEntries, STATE_FORMAT: _StateEntries}


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the file appears whole or, when anything fails, what stood there before stays.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save(dict(content), temporary)
    except (OSError, RuntimeError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{path}: cannot be written ({reason}); check the folder and the disk") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than tensors and plain values, NaN or Inf, or has
            one of our formats and lacks what belongs to it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint such as segmenter_best.pth")
    try:
        content = read_torch_file(path)
    except TorchFileError as error:
        raise CheckpointError(f"{path}: {error}; copy the file again, or save its state_dict alone") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}; expected a checkpoint")
    if (kind := content.get("format")) in list(_ENTRIES):
        version = content.get("version")
        if type(version) is not int or version != VERSION:
            raise CheckpointError(f"{path}: has version {str(version)[:20]}, this code reads {VERSION}; update it")
        _check_entries(content, _ENTRIES[kind], path)
    return content


def _check_entries(content: Mapping[str, Any], expected: type[_Entries], path: Path) -> None:
    try:
        expected.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        entry = ".".join(str(part) for part in first["loc"])[:100]
        raise CheckpointError(
            f"{path}: its entry {entry} is missing or wrong ({first['msg'].lower()}); take another checkpoint"
        ) from None


def save_segmenter(
    path: Path,
    segmenter: Segmenter,
    trained_on: SegmenterInput,
    iteration: int | None,
    valid_dice: float | None,
    training: Training | None = None,
) -> None:
    """Write a segmenter for use.

    Args:
        path: of the file.
        segmenter: S.
        trained_on: kept with it.
        iteration: of its training, None where it is not known.
        valid_dice: on the validation scans, None where there was no validation.
        training: what it was trained on and with, None where it is not known.

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
        "training": None if training is None else asdict(training),
        "weights": segmenter.state_dict(),
    }
    save(content, path)


def find_segmenter(path: Path) -> Path:
    """The file of a segmenter: `path` itself or, of a folder, the one that a release or a training run has in it.

    Where a list of checksums beside the file names it, it is checked.

    Raises:
        CheckpointError: there is none in the folder, or it is not the one that the checksum is of.
        OSError: a file cannot be read.
    """
    if path.is_dir():
        found = [path / name for name in (RELEASED, BEST) if (path / name).is_file()]
        if not found:
            raise CheckpointError(
                f"{path}: neither a release ({RELEASED}) nor a run with validation ({BEST}); name the file itself"
            )
        path = found[0]
    if path.is_file():
        check_listed(path)
    return path


def load_segmenter(path: Path, default: SegmenterInput) -> tuple[Segmenter, SegmenterInput]:
    """A segmenter from a file of ours (of either kind), or from a published ``checkpointU_*.pth``.

    Args:
        path: of the file, or of the folder of a release or a training run (see `find_segmenter`).
        default: what a published segmenter, which does not say it, is taken to be trained on; so is a training state.

    Returns:
        The segmenter on the CPU, and what it was trained on.

    Raises:
        CheckpointError: the file cannot be read, is not the one that its checksum is of, or is not a segmenter's.
    """
    segmenter, facts = read_segmenter(path)
    return segmenter, facts.trained_on or default


def read_segmenter(path: Path) -> tuple[Segmenter, SegmenterFacts]:
    """As `load_segmenter`, with all that the file says about the segmenter.

    Raises:
        CheckpointError: as there.
    """
    path = find_segmenter(path)
    content = load(path)
    facts = SegmenterFacts(None)
    if content.get("format") == SEGMENTER_FORMAT:
        given, training = content["input"], content.get("training")
        facts = SegmenterFacts(
            SegmenterInput(tuple(given["size"]), tuple(given["window"]), given["normalization"]),
            content.get("iteration"),
            content.get("valid_dice"),
            None if training is None else Training(**{entry.name: training[entry.name] for entry in fields(Training)}),
        )
    weights = _weights(content, "segmenter", path)
    width = _width(weights, "stem.0.weight", "conv.weight")
    if width is None:
        raise CheckpointError(f"{path}: not the weights of a segmenter; its first entry is {next(iter(weights), None)}")
    segmenter = Segmenter(width)
    _fill(segmenter, weights, path)
    return segmenter, facts


def fingerprint(network: nn.Module) -> str:
    """What tells the weights of a network from all others: the SHA-256, in hexadecimal, of their names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_generator(path: Path) -> Generator:
    """A generator from one of our training states, or from a published ``checkpointG_*.pth``.

    Raises:
        CheckpointError: the file cannot be read or is not a generator's.
    """
    weights = _weights(load(path), "generator", path)
    width = _width(weights, "encode1.0.weight", "conv1.0.weight")
    if width is None:
        raise CheckpointError(f"{path}: not the weights of a generator; use state_*.pth or a checkpointG_*.pth")
    generator = Generator(width)
    _fill(generator, weights, path)
    return generator


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a file of ours or from a published checkpoint; a segmenter from a folder, too.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit.
    """
    kind = type(network).__name__.lower()
    if kind == "segmenter":
        path = find_segmenter(path)
    content = load(path)
    if content.get("format") == SEGMENTER_FORMAT and kind != "segmenter":
        raise CheckpointError(f"{path}: holds a segmenter alone; for the {kind} use a state_*.pth")
    _fill(network, _weights(content, kind, path), path)


def _weights(content: Mapping[str, Any], network: str, path: Path) -> dict[str, Tensor]:
    """The state dict of one network; a file that is neither of ours is taken for a published state dict."""
    if content.get("format") == STATE_FORMAT:
        weights = content["networks"][network]
    elif content.get("format") == SEGMENTER_FORMAT:
        weights = content["weights"]
    else:
        weights = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    try:
        return without_wrappers(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; save its state_dict anew") from None


def _width(weights: Mapping[str, Tensor], ours: str, published: str) -> int | None:
    """The width of a network by its first convolution, under our name or the published one; None if it is another's."""
    first = weights.get(ours, weights.get(published))
    fits = first is not None and first.ndim == 5 and first.shape[1] == 1 and 0 < first.shape[0] <= _WIDEST
    return first.shape[0] if fits else None


def _fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        if is_published(network, weights):
            load_published(network, weights)
        else:
            network.load_state_dict(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        reason = one_line(error)
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


def save_networks(path: Path, state: Path) -> None:
    """Write S, G and D of a training state alone, in half precision, as a state that is not for resuming.

    Args:
        path: of the new file.
        state: the training state.

    Raises:
        CheckpointError: it is none, cannot be read, has weights beyond half precision, or the file cannot be written.
    """
    content = load(state)
    if content.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{state}: not a training state; take a state_*.pth")
    networks = {name: {key: _halved(x) for key, x in w.items()} for name, w in content["networks"].items()}
    if not all(x.isfinite().all() for weights in networks.values() for x in weights.values()):
        raise CheckpointError(f"{state}: has weights beyond the range of half precision; take another state")
    # Not the settings: they name folders.
    known = {"iteration": content["iteration"]} if "iteration" in content else {}
    save({"format": STATE_FORMAT, "version": VERSION, **known, "networks": networks}, path)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


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
            if content.get("format") != STATE_FORMAT:
                raise CheckpointError(f"{path}: not a training state")
            _check_entries(content, _ResumableEntries, path)
            return content
        except CheckpointError as error:
            log.warning("%s", error)
    raise CheckpointError(f"{folder}: no training state to resume from; start without --resume")
