"""Inference by OpenVINO on CPUs; PyTorch computes elsewhere, and where OpenVINO is missing or fails.

In float32 both agree to rounding; OpenVINO is faster (docs/results.md). A network is converted once, and kept in the
user's cache folder.
"""

import copy
import hashlib
import logging
import os
import sys
import threading
import warnings
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import fingerprint
from models.layers import computes_bfloat16, place
from utils.errors import one_line
from utils.files import atomic_write

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of_lungs(asked: str, device: torch.device) -> str:
    """What lungmask's network computes in: what was asked for; by default half precision where a device has it."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "fp16"
    # OpenVINO, unlike PyTorch, is twice as fast by the instructions of AVX-512 for bfloat16, too.
    has_avx512 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if computes_bfloat16(device) or (has_avx512 and _openvino() is not None) else "fp32"


class Engine(nn.Module):
    """A trained network for inference, on its device; precisions are `DTYPES`.

    Its weights are contiguous or channels-last, and do not change any more.
    """

    def __init__(self, network: nn.Module, precision: str = "fp32") -> None:
        super().__init__()
        self.network, self.precision = network.eval(), precision
        self._lock, self._failed = threading.Lock(), False
        self._made_for: tuple[Any, ...] = ()
        self._compiled: Any = None

    @property
    def way(self) -> str:
        """What computes, and in which precision, such as ``OpenVINO 2026.4.1 in float32``."""
        program, precision = f"PyTorch {version('torch')}", self.precision
        if self._by_openvino(next(self.network.parameters()).device):
            program = f"OpenVINO {version('openvino')}"
            precision = "bf16" if self.precision == "bf16" and _has_bfloat16() else "fp32"
        return f"{program} in {str(DTYPES[precision]).removeprefix('torch.')}"

    def forward(self, x: Tensor) -> Tensor:
        """As the network's, in float32. Whatever stops OpenVINO is one line in the log, and PyTorch computes."""
        if self._by_openvino(x.device):
            try:
                with self._lock:
                    return self._infer(x.contiguous())
            except Exception as error:  # of many kinds, from tracing to the processor
                self._failed = True
                log.warning("OpenVINO failed (%s); PyTorch computes instead", one_line(error))
        with torch.autocast(x.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self.network(x).float()

    def _by_openvino(self, device: torch.device) -> bool:
        return device.type == "cpu" and not self._failed and _openvino() is not None

    def _infer(self, x: Tensor) -> Tensor:
        made_for = (*x.shape, torch.get_num_threads())
        if self._made_for == made_for:
            return _run(self._compiled, x)
        path = _path(self.network, x.shape)
        model = _read(path)
        converted = _convert(self.network, x) if model is None else None
        options = {
            # Without it, bfloat16 where a CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # several processes would share a core
        }
        self._compiled = _openvino().Core().compile_model(model or converted, "CPU", options)
        found = _run(self._compiled, x)
        if converted is not None:
            expected = self.network(x)
            tolerance = (1e-3 if self.precision == "fp32" else 0.1) * expected.abs().max()
            if not (found - expected).abs().max() <= tolerance:
                raise RuntimeError("its results differ from PyTorch's")
            _write(converted, path)
        self._made_for = made_for
        return found


@cache
def _openvino() -> ModuleType | None:
    """The package; None if it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # it would report every import to the makers' server
    try:
        import openvino
    except (ImportError, OSError) as error:
        log.info("OpenVINO cannot be imported (%s); PyTorch computes, which takes longer", one_line(error))
        return None
    return openvino


@cache
def _has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU; on others it takes float32, without a word."""
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _run(compiled: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(compiled(x.numpy(), share_outputs=False)[0])


def _convert(network: nn.Module, x: Tensor) -> Any:
    """Trace a network and convert it for inputs of the shape of `x`."""
    plain = place(copy.deepcopy(network), x.device, channels_last=False)
    with warnings.catch_warnings(action="ignore"):  # of checks of shapes, which tracing leaves out, and of jit's age
        return _openvino().convert_model(plain, example_input=x, input=list(x.shape))


def _path(network: nn.Module, shape: torch.Size) -> Path | None:
    """The file of a converted network; None for a user without a home."""
    modules = sorted({type(module).__module__ for module in network.modules()})
    code = [Path(sys.modules[name].__file__).read_bytes() for name in modules if not name.startswith("torch.")]
    told = (str(network), code, fingerprint(network), tuple(shape), version("openvino"), version("torch"))
    name = f"{hashlib.sha256(repr(told).encode()).hexdigest()}.openvino"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "gasnet" / name
    except RuntimeError:
        return None


def _read(path: Path | None) -> Any:
    """Read a converted network; None if there is none, or its file is damaged."""
    try:
        with np.load(path or os.devnull) as file:  # which compares checksums
            return _openvino().Core().read_model(file["xml"].tobytes(), _openvino().Tensor(file["weights"]))
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return None


def _write(model: Any, path: Path | None) -> None:
    """Keep a converted network, its XML and its weights, if possible."""
    if path is None:
        return
    with suppress(OSError), TemporaryDirectory() as folder:
        xml = Path(folder) / "network.xml"
        _openvino().save_model(model, xml, compress_to_fp16=False)
        arrays = {"xml": np.fromfile(xml, np.uint8), "weights": np.fromfile(xml.with_suffix(".bin"), np.uint8)}
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
