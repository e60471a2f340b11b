"""Files of torch.save, read whole and safely: nothing in them is run, and no damage goes unnoticed."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import one_line


class TorchFileError(ValueError):
    """A file of torch.save is damaged or unsafe; the message says what is wrong, the file is named by who reads it."""


def read_torch_file(path: Path) -> Any:
    """Read a file of torch.save onto the CPU: plain values, and tensors without NaN or Inf.

    The legacy format, without a zip archive, has no checksums: there, damage in the numbers of a tensor is noticed
    only where it makes them NaN or Inf.

    Raises:
        TorchFileError: it cannot be read, is damaged, unpacks to more than it is, or holds more than plain values and
            dense tensors. The message is part of one line.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about old protocols of pickle
            content = torch.load(_checked(path), map_location="cpu", weights_only=True)
        for name, tensor in _tensors(content):
            _check_tensor(name, tensor)
    except TorchFileError:
        raise
    except pickle.UnpicklingError:  # torch's own message is a page long
        raise TorchFileError(
            "not a file of torch.save, or one that holds more than tensors and plain values, which is never run"
        ) from None
    except Exception as error:  # what is not such a file makes the reader raise whatever comes to it
        reason = one_line(error)
        raise TorchFileError(f"damaged, or not a file of torch.save ({reason})") from None
    return content


def _checked(path: Path) -> BytesIO:
    """The bytes of a file; of an archive, those of its entries after their checksums were compared.

    torch.load compares no checksums, and may see other entries than Python's zipfile does. What it gets is therefore
    a new archive of what was checked.
    """
    content = path.read_bytes()
    if not content.startswith(b"PK\x03\x04"):  # as torch.load tells the two formats apart
        return BytesIO(content)
    checked = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as source, zipfile.ZipFile(checked, "w") as target:
        entries = source.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > len(content):
            raise TorchFileError("its entries are compressed or overlap, which torch.save never does")
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
        raise TorchFileError(f"its entry {name[:100]!r} is not a plain tensor")
    if not torch.isfinite(tensor).all():
        raise TorchFileError(f"NaN or Inf in its entry {name[:100]!r}")
