"""Export a segmenter for use elsewhere: ONNX, torch.export, and release folders."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from configs.settings import REMOVED
from evaluation.burden import NOTICE
from evaluation.metrics import THRESHOLD
from models import Segmenter
from models.checkpoint import NETWORKS, PUBLISHED_INPUT, RELEASED, SegmenterFacts, save_segmenter
from training.model_card import CARD, UNKNOWN, model_card
from training.states import save_networks
from utils.checksums import write_checksums
from utils.errors import GasnetError, SettingsError
from utils.files import atomic_folder, atomic_write, write_text
from utils.manifest import project_version
from utils.strict_yaml import parse_yaml

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
"""File extension by format."""

_KINDS = {"onnx": "ONNX, for onnxruntime and others", "torch_export": "torch.export, for PyTorch alone"}

TOLERANCE = 1e-3
"""Largest difference of probabilities from those of S; a file that exceeds it is not kept."""

METADATA = "metadata.json"
"""Name of the metadata in a torch.export file: ``torch.export.load(path, extra_files={"metadata.json": ""})``."""

_SMALLEST = 8  # at 4, the lowest level is a single voxel, for which torch.export specialises the program

Run = Callable[[Tensor], Tensor]


class Probability(nn.Module):
    """The segmenter followed by a sigmoid.

    Args:
        segmenter: S.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, volume: Tensor) -> Tensor:
        """Probabilities of lesion, of the shape of `volume`: (batch, 1, depth, height, width) in [-1, 1]."""
        return self.segmenter(volume).sigmoid()


def metadata(facts: SegmenterFacts) -> dict[str, str]:
    """Metadata of an exported file; lists and numbers as JSON."""
    given = facts.trained_on or PUBLISHED_INPUT
    return {
        "model": "GASNet segmenter: lesions of COVID-19 in chest CT",
        "notice": NOTICE,
        "input": "volume: float32 (batch, 1, depth, height, width) in [-1, 1], sizes multiples of 4 from 8 on",
        "output": "probability: of lesion, of the shape of the input; set it to 0 outside the lungs",
        "threshold": json.dumps(THRESHOLD),
        "crop_size": json.dumps(given.size),
        "window_hu": json.dumps(given.window),
        "normalization": given.normalization,
        "input_known_from": "the checkpoint" if facts.trained_on else "the published code; the checkpoint does not say",
        "iteration": json.dumps(facts.iteration),
        "valid_dice": json.dumps(facts.valid_dice),
        "gasnet_version": project_version(),
        "torch_version": torch.__version__,
    }


def export_program(segmenter: Segmenter) -> ExportedProgram:
    """Trace S with its sigmoid by torch.export, for any batch and any size that is a multiple of 4.

    Args:
        segmenter: S on the CPU, in contiguous layout.
    """
    sizes = {axis: 4 * Dim(name, min=_SMALLEST // 4) for axis, name in ((2, "depth"), (3, "height"), (4, "width"))}
    # Sizes that differ from each other and from 1, so that none is specialised or unified with another.
    volume = torch.zeros(2, 1, 16, 32, 48)
    program = torch.export.export(
        Probability(segmenter).eval(), (volume,), dynamic_shapes=({0: Dim("batch", min=1), **sizes},)
    )
    for node in program.graph.nodes:  # contains paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def write_torch_export(program: ExportedProgram, facts: SegmenterFacts, path: Path) -> None:
    """Write a program as a .pt2 file, for ``torch.export.load(path).module()``.

    torch.export, and not TorchScript, which PyTorch 2.11 warns of as deprecated.
    """
    file = io.BytesIO()  # torch would name a folder in the archive after the path
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata(facts), indent=2)})
    path.write_bytes(file.getvalue())


def write_onnx(program: ExportedProgram, facts: SegmenterFacts, path: Path) -> None:
    """Write a program as one ONNX file, weights included.

    Raises:
        GasnetError: a package it needs is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise GasnetError(f"--format onnx: needs {' and '.join(missing)}; pip install -r requirements.txt")
    import onnx

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every node
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # from torch's own code
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["volume"], output_names=["probability"], verbose=False
        )
    model = exported.model_proto
    _name_axes(model)
    for item in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]  # contains paths of this machine
    onnx.helper.set_model_props(model, metadata(facts))
    model.producer_name, model.doc_string = "GASNet", NOTICE
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _name_axes(model: onnx.ModelProto) -> None:  # noqa: F821 - imported where it is needed
    """Name the dynamic axes instead of the exporter's symbols."""
    del model.graph.value_info[:]  # the same symbols; readers infer shapes themselves
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, ("batch", None, "depth", "height", "width"), strict=True
        ):
            if name is not None:
                dimension.dim_param = name


WRITERS = {"onnx": write_onnx, "torch_export": write_torch_export}


def runner(path: Path, form: str) -> Run | None:
    """A function that runs an exported file; None if it needs onnxruntime, which is not installed.

    Args:
        path: the exported file.
        form: key of `SUFFIXES`.
    """
    if form == "torch_export":
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # from torch's own code
            return torch.export.load(path).module()
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda volume: torch.from_numpy(session.run(None, {"volume": volume.numpy()})[0])


@torch.no_grad()
def largest_difference(segmenter: Segmenter, exported: Run, shapes: Sequence[Sequence[int]]) -> float:
    """The largest difference between the probabilities of S and of an exported file on random input.

    Args:
        segmenter: S on the CPU.
        exported: runs the file.
        shapes: input shapes, (batch, 1, depth, height, width).
    """
    random = torch.Generator().manual_seed(0)
    differences = []
    for shape in shapes:
        volume = torch.rand(*shape, generator=random) * 2 - 1
        differences.append((exported(volume) - segmenter(volume).sigmoid()).abs().max().item())
    return float(np.max(differences))  # NaN stays NaN


def export(segmenter: Segmenter, facts: SegmenterFacts, files: Mapping[Path, str]) -> dict[Path, float | None]:
    """Export a segmenter; a file that does not agree with it is not kept.

    Args:
        segmenter: S on the CPU, in contiguous layout.
        facts: what its file says about it.
        files: path to format, a key of `SUFFIXES`.

    Returns:
        Path to the largest difference from S; None if the file could not be run.

    Raises:
        GasnetError: a package is missing, or a file does not agree with S.
        OSError: a file cannot be written.
    """
    program = export_program(segmenter)
    size = (facts.trained_on or PUBLISHED_INPUT).size
    shapes = ((1, 1, *size), (2, 1, size[0] + 4, 32, 64))
    differences: dict[Path, float | None] = {}
    for path, form in files.items():
        with atomic_write(path) as temporary:
            WRITERS[form](program, facts, temporary)
            exported = runner(temporary, form)
            found = None if exported is None else largest_difference(segmenter, exported, shapes)
            if found is not None and not found <= TOLERANCE:
                raise GasnetError(
                    f"{path}: probabilities differ by up to {found:.2g} from those of S; not kept. Update torch, onnx, "
                    "onnxscript and onnxruntime, and report it if that does not help"
                )
        differences[path] = found
    return differences


def release(
    segmenter: Segmenter,
    facts: SegmenterFacts,
    folder: Path,
    formats: Sequence[str],
    licence: str = UNKNOWN,
    state: Path | None = None,
) -> dict[Path, float | None]:
    """Make a release folder: checkpoint, exported files, settings, model card and checksums; atomic.

    Args:
        segmenter: S on the CPU, in contiguous layout.
        facts: what its file says about it.
        folder: must not exist, or be empty.
        formats: keys of `SUFFIXES`.
        licence: licence of the weights, for the model card.
        state: training state whose S, G and D are included.

    Returns:
        As `export`.

    Raises:
        FolderError: the folder is not empty.
        CheckpointError: the state cannot be read.
        GasnetError: as `export`.
        OSError: the folder cannot be written.
    """
    with atomic_folder(folder) as temporary:
        if state is not None:  # first, so that a bad state fails before the slow export
            save_networks(temporary / NETWORKS, state)
        files = files_in(temporary, formats)
        differences = export(segmenter, facts, files)
        known = facts.model_copy(update={"trained_on": facts.trained_on or PUBLISHED_INPUT})
        save_segmenter(temporary / RELEASED, segmenter, known)
        if (settings := usable_settings(facts)) is not None:
            write_text(temporary / "settings.yaml", settings)
        described = {path.name: f"{_KINDS[form]}; {agreement(differences[path])}" for path, form in files.items()}
        write_text(temporary / CARD, model_card(segmenter, facts, RELEASED, described, licence, state and NETWORKS))
        write_checksums(temporary)
    return {folder / path.name: difference for path, difference in differences.items()}


def usable_settings(facts: SegmenterFacts) -> str | None:
    """The settings of a segmenter's training as YAML that this version reads, without settings that it removed.

    Args:
        facts: what the segmenter's file says.

    Returns:
        None if the file does not say its settings.
    """
    if facts.training is None:
        return None
    try:
        tree = parse_yaml(facts.training.settings, "settings")
    except SettingsError:
        return facts.training.settings
    for section, key in (name.split(".") for name in REMOVED):
        if isinstance(tree, dict) and isinstance(tree.get(section), dict):
            tree[section].pop(key, None)
    return yaml.safe_dump(tree, sort_keys=False, width=110)


def files_in(folder: Path, formats: Sequence[str]) -> dict[Path, str]:
    """Path to format of the exported files in a folder."""
    return {folder / f"segmenter{SUFFIXES[form]}": form for form in formats}


def agreement(difference: float | None) -> str:
    """How well an exported file agrees with S, in words."""
    if difference is None:
        return "checked with onnx.checker only, since onnxruntime is not installed"
    return f"on random input, probabilities differ by at most {difference:.1g} from those of S"
