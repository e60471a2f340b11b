"""Exports a trained segmenter: for use without this code, and as a folder to hand on.

--output writes S as ONNX (segmenter.onnx) and as a program of torch.export (segmenter.pt2). Both take the normalised
crop, float32 (batch, 1, depth, height, width) in [-1, 1], and give the probability of lesion at every voxel; batch,
depth, height and width are free (sizes multiples of 4, from 8 on). Crop size, window, normalization and version are
stored inside. Each file is run beside S on random input before it takes its place, and the difference is printed.

--release makes a folder with both files, segmenter.pth (weights, without optimisers), model_card.md, settings.yaml
where the settings are known, and SHA256SUMS. test.py --model-path and others take such a folder. With --state, there
is networks.pth, too: S, G and D of a training state, in half precision, for the figures of test.py and for INIT_MODEL.

The model is a segmenter_*.pth of ours, the folder of a run or a release, or a published checkpointU_*.pth. For
research only; not a medical device.

Examples:
    python export.py output/run/segmenter_best.pth --output segmenter.onnx
    python export.py output/run --output exported --format torch_export
    python export.py output/run --release gasnet-release --licence "CC BY 4.0"
    python export.py output/run --release gasnet-release --state output/run/state_0300000.pth
"""

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
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from evaluation.burden import NOTICE
from evaluation.metrics import THRESHOLD
from models import Segmenter
from training.checkpoint import (
    BEST,
    LAST,
    NETWORKS,
    RELEASED,
    STATE_FORMAT,
    SegmenterFacts,
    find_segmenter,
    load,
    read_segmenter,
    save_networks,
    save_segmenter,
)
from training.model_card import (
    CARD,
    PUBLISHED_INPUT,
    UNKNOWN,
    model_card,
    training_settings,
)
from utils.checksums import write_checksums
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import CheckpointError, GasnetError
from utils.files import atomic_folder, atomic_write, lock_folder, write_text
from utils.manifest import project_version, recording

log = logging.getLogger(__name__)

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
"""Formats, and the extensions of their files."""

TOLERANCE = 1e-3
"""An exported file whose probabilities differ by more from those of S is not kept."""

METADATA = "metadata.json"
"""Name of the metadata in a file of torch.export: ``torch.export.load(path, extra_files={"metadata.json": ""})``."""

_SMALLEST = 8  # at 4, the lowest level has a single voxel, for which torch.export makes another program
_MEBIBYTE = 2**20

Run = Callable[[Tensor], Tensor]


class Probability(nn.Module):
    """The segmenter with a sigmoid behind it.

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
    """What is stored inside an exported file; lists and numbers as JSON."""
    given = facts.trained_on or PUBLISHED_INPUT
    return {
        "model": "GASNet segmenter: lesions of COVID-19 in chest CT",
        "notice": NOTICE,
        "input": "volume: float32 (batch, 1, depth, height, width) in [-1, 1], sizes multiples of 4 from 8 on",
        "output": "probability: of lesion, of the shape of the input; 0 is to be put outside the lungs",
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
    """S with its sigmoid as a program of torch.export, for any batch and any size that is a multiple of 4.

    Args:
        segmenter: S on the CPU, in PyTorch's usual layout.
    """
    sizes = {axis: 4 * Dim(name, min=_SMALLEST // 4) for axis, name in ((2, "depth"), (3, "height"), (4, "width"))}
    # Sizes that differ from each other and from 1, so that no two of them are taken for the same.
    volume = torch.zeros(2, 1, 16, 32, 48)
    program = torch.export.export(
        Probability(segmenter).eval(), (volume,), dynamic_shapes=({0: Dim("batch", min=1), **sizes},)
    )
    for node in program.graph.nodes:  # tells the paths of the machine that it was made on
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
        GasnetError: the packages that it needs are missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise GasnetError(f"--format onnx: needs {' and '.join(missing)}; pip install -r requirements.txt")
    import onnx

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell every node that they pass over
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch's own code about torch
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["volume"], output_names=["probability"], verbose=False
        )
    model = exported.model_proto
    _name_axes(model)
    for item in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]  # paths of the machine that it was made on
    onnx.helper.set_model_props(model, metadata(facts))
    model.producer_name, model.doc_string = "GASNet", NOTICE
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _name_axes(model: onnx.ModelProto) -> None:  # noqa: F821 - imported where it is needed
    """Call the free axes by their names instead of the exporter's symbols."""
    del model.graph.value_info[:]  # the same symbols; readers infer shapes by themselves
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, ("batch", None, "depth", "height", "width"), strict=True
        ):
            if name is not None:
                dimension.dim_param = name


WRITERS = {"onnx": write_onnx, "torch_export": write_torch_export}


def runner(path: Path, form: str) -> Run | None:
    """How to run an exported file; None where onnxruntime, which runs ONNX, is not installed.

    Args:
        path: of the file.
        form: key of `SUFFIXES`.
    """
    if form == "torch_export":
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of torch's own code about its buffers
            return torch.export.load(path).module()
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda volume: torch.from_numpy(session.run(None, {"volume": volume.numpy()})[0])


@torch.no_grad()
def largest_difference(segmenter: Segmenter, exported: Run, shapes: Sequence[Sequence[int]]) -> float:
    """The largest difference of the probabilities of S and of an exported file on random input.

    Args:
        segmenter: S on the CPU.
        exported: runs the file.
        shapes: of the input, (batch, 1, depth, height, width).
    """
    random = torch.Generator().manual_seed(0)
    differences = []
    for shape in shapes:
        volume = torch.rand(*shape, generator=random) * 2 - 1
        differences.append((exported(volume) - segmenter(volume).sigmoid()).abs().max().item())
    return float(np.max(differences))  # NaN stays NaN


def export(segmenter: Segmenter, facts: SegmenterFacts, files: Mapping[Path, str]) -> dict[Path, float | None]:
    """Export a segmenter to files that are whole and agree with it, or are not there.

    Args:
        segmenter: S on the CPU, in PyTorch's usual layout.
        facts: what its file says about it.
        files: path to format, a key of `SUFFIXES`.

    Returns:
        Path to the largest difference from S, None where the file could not be run.

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
    """Make a folder to hand on; it appears whole or not at all.

    Args:
        segmenter: S on the CPU, in PyTorch's usual layout.
        facts: what its file says about it.
        folder: not there yet, or empty.
        formats: keys of `SUFFIXES`.
        licence: of the weights, for the model card.
        state: a training state, whose S, G and D are to go along.

    Returns:
        As `export`.

    Raises:
        FolderError: the folder is not empty.
        CheckpointError: the state cannot be read.
        GasnetError: as `export`.
        OSError: the folder cannot be written.
    """
    with atomic_folder(folder) as temporary:
        if state is not None:  # first: what is wrong with it is to be known before the export, which takes long
            save_networks(temporary / NETWORKS, state)
        files = _files(temporary, formats)
        differences = export(segmenter, facts, files)
        trained_on = facts.trained_on or PUBLISHED_INPUT
        save_segmenter(temporary / RELEASED, segmenter, trained_on, facts.iteration, facts.valid_dice, facts.training)
        if (settings := training_settings(facts)) is not None:
            write_text(temporary / "settings.yaml", settings)
        described = {path.name: f"{_KINDS[form]}; {_agreement(differences[path])}" for path, form in files.items()}
        write_text(temporary / CARD, model_card(segmenter, facts, RELEASED, described, licence, state and NETWORKS))
        write_checksums(temporary)
    return {folder / path.name: difference for path, difference in differences.items()}


def _files(folder: Path, formats: Sequence[str]) -> dict[Path, str]:
    return {folder / f"segmenter{SUFFIXES[form]}": form for form in formats}


_KINDS = {"onnx": "ONNX, for onnxruntime and others", "torch_export": "torch.export, for PyTorch alone"}


def _agreement(difference: float | None) -> str:
    if difference is None:
        return "checked with onnx.checker only, since onnxruntime is not installed"
    return f"on random input, probabilities differ by at most {difference:.1g} from those of S"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the segmenter, or the folder of a run or a release")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, metavar="FILE|DIR", help="a .onnx or .pt2 file, or a folder for them")
    where.add_argument("--release", type=Path, metavar="DIR", help="a new folder to hand on")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=tuple(SUFFIXES),
        metavar="FORMAT",
        help=f"{', '.join(SUFFIXES)} (default: both in a folder, of a file the one that its extension says)",
    )
    parser.add_argument(
        "--licence", metavar="TEXT", help="licence of the weights, for the model card of --release (default: unknown)"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="a state_*.pth, whose S, G and D go along in the --release"
    )
    add_quiet(parser)
    options = parser.parse_args(arguments)
    start_logging(options.quiet)
    by_suffix = {suffix: form for form, suffix in SUFFIXES.items()}
    named = by_suffix.get(options.output.suffix) if options.output else None
    if named is not None and options.format not in (None, [named]):
        parser.error(f"--output {options.output} is a file of {named}; leave --format out, or name a folder")
    if options.licence is not None and options.release is None:
        parser.error("--licence is for --release")
    if options.state is not None and options.release is None:
        parser.error("--state is for --release")
    formats = [named] if named is not None else list(dict.fromkeys(options.format or SUFFIXES))

    path = find_segmenter(options.model)
    if load(path).get("format") == STATE_FORMAT:
        raise CheckpointError(f"{path}: a state to resume training from; take {BEST} or {LAST} beside it")
    segmenter, facts = read_segmenter(path)
    if facts.trained_on is None:
        log.warning("%s: does not say what it was trained on; taken to be as published", path)
    if options.release is not None:
        licence = options.licence or UNKNOWN
        differences = release(segmenter, facts, options.release, formats, licence, options.state)
    else:
        folder = options.output.parent if named else options.output
        files = {options.output: named} if named else _files(folder, formats)
        with lock_folder(folder), recording(folder, model=path):
            differences = export(segmenter, facts, files)
    for file, difference in differences.items():
        print(f"{file}: {file.stat().st_size / _MEBIBYTE:.1f} MiB; {_agreement(difference)}")
    if options.release is not None:
        print(f"release in {options.release}: {', '.join(sorted(p.name for p in options.release.iterdir()))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
