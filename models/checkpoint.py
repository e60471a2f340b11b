"""Checkpoints of networks: the file of a segmenter, and the weights inside training states and published files.

Files are written atomically. Reading one never runs code in it, and no damage goes unnoticed.
"""

import hashlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor, nn

from models.published import is_published, load_published, without_wrappers
from models.segmenter import build_segmenter
from utils.errors import CheckpointError, one_line
from utils.files import atomic_write

log = logging.getLogger(__name__)

SEGMENTER_FORMAT = "GASNet segmenter"
STATE_FORMAT = "GASNet training state"
VERSION = 1

BEST, LAST, RELEASED = "segmenter_best.pth", "segmenter_last.pth", "segmenter.pth"
"""File names of segmenters: best validation and last save of a run, and that of a folder to share."""

_WIDEST = 1024
Width = Annotated[int, Field(ge=1, le=_WIDEST)]


class _Entries(BaseModel):
    """Required entries of a checkpoint; unknown entries, of later versions, are ignored."""

    model_config = ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, populate_by_name=True
    )


class SegmenterInput(_Entries):
    """The input that a segmenter was trained on: size (z, y, x) and window (HU that became 0 and 255) of its crops."""

    size: tuple[PositiveInt, PositiveInt, PositiveInt]
    window: tuple[float, float]
    normalization: Literal["minmax", "window"]


class Training(_Entries):
    """How a segmenter was trained: number of scans by split, settings as YAML, ...; no ids of scans and no paths."""

    cohort: str
    scans: dict[str, NonNegativeInt]
    settings: str
    device: str
    versions: dict[str, str]


class SegmenterFacts(_Entries):
    """What the file of a segmenter says about it; None for what it does not say."""

    trained_on: SegmenterInput | None = Field(None, alias="input")
    width: Width | None = None  # channels of its first layer
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5  # above it is lesion; this, or chosen on the validation scans
    iteration: NonNegativeInt | None = None
    valid_dice: float | None = None  # mean on the validation scans
    training: Training | None = None
    seen: list[str] | None = None  # checksums of the CTs that it, or what it began from, was trained on or chosen by

    def describe(self) -> str:
        """What is known of the segmenter, as YAML; null for the rest."""
        told = self.model_dump(mode="json", by_alias=True, exclude={"seen"})
        told["scans_seen"] = None if self.seen is None else len(self.seen)
        if self.training is not None:
            told["training"]["settings"] = yaml.safe_load(self.training.settings)
        return yaml.safe_dump(told, sort_keys=False, width=110)


PUBLISHED_INPUT = SegmenterInput(size=(40, 160, 160), window=(-1250.0, 250.0), normalization="minmax")
"""Input of the published code, whose checkpoints do not say it."""


class _SegmenterFile(SegmenterFacts):
    trained_on: SegmenterInput = Field(alias="input")
    width: Width
    weights: dict[str, Tensor]


class _NetworkWeights(_Entries):
    segmenter: dict[str, Tensor]
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]


class _StateFile(_Entries):
    networks: _NetworkWeights
    seen: list[str] | None = None


_ENTRIES = {SEGMENTER_FORMAT: _SegmenterFile, STATE_FORMAT: _StateFile}


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: the file cannot be written; an earlier one stays.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save(dict(content), temporary)
    except (OSError, RuntimeError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{path}: cannot be written ({reason}); check the folder and the disk") from None


def read_torch_file(path: Path) -> Any:
    """Read a file of torch.save onto the CPU: plain values, and tensors without NaN or Inf.

    The legacy format, without a zip archive, has no checksums: there, damage in the numbers of a tensor is noticed
    only where it makes them NaN or Inf.

    Raises:
        CheckpointError: it cannot be read, is damaged, unpacks to more than it is, or holds more than plain values and
            dense tensors.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about old protocols of pickle
            content = torch.load(_checked(path), map_location="cpu", weights_only=True)
        for name, tensor in _tensors(content):
            _check_tensor(name, tensor)
        return content
    except CheckpointError as error:
        reason = str(error)
    except pickle.UnpicklingError:  # torch's own message is a page long
        reason = "not a file of torch.save, or one that holds more than tensors and plain values, which is never run"
    except Exception as error:  # what is not such a file makes the reader raise whatever comes to it
        reason = f"damaged, or not a file of torch.save ({one_line(error)})"
    raise CheckpointError(f"{path}: {reason}; copy the file again")


def _checked(path: Path) -> BytesIO:
    """The bytes of a file; of an archive, a new archive of its entries after their checksums were compared.

    torch.load compares no checksums, and may see other entries than Python's zipfile does.
    """
    content = path.read_bytes()
    if not content.startswith(b"PK\x03\x04"):  # as torch.load tells the two formats apart
        return BytesIO(content)
    checked = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as source, zipfile.ZipFile(checked, "w") as target:
        entries = source.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > len(content):
            raise CheckpointError("its entries are compressed or overlap, which torch.save never does")
        for entry in entries:
            target.writestr(entry.filename, source.read(entry))
    checked.seek(0)
    return checked


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts, lists and tuples, with its key."""
    # Each container once and without recursion: a file may hold one that contains itself, or a million within another.
    left, seen = [("", content)], set()
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(str(key), item) for key, item in items]


def _check_tensor(name: str, tensor: Tensor) -> None:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    # A few bytes can stand for terabytes by strides of 0.
    if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"its entry {name[:100]!r} is not a plain tensor")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"NaN or Inf in its entry {name[:100]!r}")


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: as `read_torch_file`; or it has one of our formats without its required entries.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint such as segmenter_best.pth")
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}; expected a checkpoint")
    if (kind := content.get("format")) in list(_ENTRIES):
        version = content.get("version")
        if type(version) is not int or version != VERSION:
            raise CheckpointError(f"{path}: has version {str(version)[:20]}, this code reads {VERSION}; update it")
        try:
            _ENTRIES[kind].model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            entry = ".".join(str(part) for part in first["loc"])[:100]
            raise CheckpointError(
                f"{path}: its entry {entry} is missing or wrong ({first['msg'].lower()}); take another checkpoint"
            ) from None
    return content


def save_segmenter(path: Path, segmenter: nn.Module, facts: SegmenterFacts) -> None:
    """Write a segmenter for use.

    Of its facts, the input is required, and the width unless S has an attribute of that name.
    """
    content = {"format": SEGMENTER_FORMAT, "version": VERSION, **facts.model_dump(by_alias=True)}
    save({**content, "width": facts.width or segmenter.width, "weights": segmenter.state_dict()}, path)


def find_segmenter(path: Path) -> Path:
    """The file of a segmenter: `path` itself or, for a folder, ``segmenter.pth`` or ``segmenter_best.pth`` in it.

    Raises:
        CheckpointError: the folder has no segmenter.
    """
    if path.is_dir():
        found = [path / name for name in (RELEASED, BEST) if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path}: has neither {RELEASED} nor {BEST}, of a run with validation; name it")
        return found[0]
    return path


def load_segmenter(path: Path, assumed: SegmenterInput | None = None) -> tuple[nn.Module, SegmenterFacts]:
    """Load a segmenter from its file, or a published ``checkpointU_*.pth``.

    A folder is searched by `find_segmenter`. The input is `assumed` if the file does not say it, as published ones do
    not. Returns the segmenter on the CPU, and what is known of it.

    Raises:
        CheckpointError: the file cannot be read or holds no segmenter, or it is a training state.
    """
    path = find_segmenter(path)
    content = load(path)
    if content.get("format") == STATE_FORMAT:
        raise CheckpointError(f"{path}: a state to resume training from; take the segmenter_*.pth beside it")
    weights = _weights(content, "segmenter", path)
    if content.get("format") == SEGMENTER_FORMAT:
        facts = SegmenterFacts(**{key: value for key, value in content.items() if key != "weights"})
    else:
        facts = SegmenterFacts(trained_on=assumed, width=_width(weights))
        if facts.width is None:
            first = next(iter(weights), None)
            raise CheckpointError(f"{path}: not the weights of a segmenter; its first entry is {first}")
        if assumed is not None:
            told = path, assumed, facts.threshold
            log.warning("%s: does not say which crops it takes: %s and threshold %g are assumed", *told)
    segmenter = build_segmenter(facts.width)
    _fill(segmenter, weights, path)
    return segmenter, facts


def fingerprint(network: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Load the weights of a network from a file, ours or published, or a segmenter's folder; return the CTs it saw."""
    kind = type(network).__name__.lower()
    kind = kind if kind in ("generator", "discriminator") else "segmenter"
    if kind == "segmenter":
        path = find_segmenter(path)
    content = load(path)
    if content.get("format") == SEGMENTER_FORMAT and kind != "segmenter":
        raise CheckpointError(f"{path}: holds a segmenter alone; for the {kind} use a state_*.pth")
    _fill(network, _weights(content, kind, path), path)
    return (content.get("seen") if content.get("format") in list(_ENTRIES) else None) or []


def _weights(content: Mapping[str, Any], network: str, path: Path) -> dict[str, Tensor]:
    """The state dict of one network; a file without our format is read as a published state dict."""
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


def _width(weights: Mapping[str, Tensor]) -> int | None:
    """The width of a segmenter, from its first convolution, under our or the published name; None of other networks."""
    first = weights.get("stem.0.weight", weights.get("conv.weight"))
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
