"""Exports a trained segmenter as ONNX (.onnx) or torch.export (.pt2), run beside S; without --output, describes it.

The exported network takes normalised crops, float32 (batch, 1, depth, height, width) in [-1, 1] with any batch and any
sizes that are multiples of 4, from 8 on, and returns the probability of lesion. Each file is run and compared with S;
one that differs is not kept. For research only; not a medical device.

Examples:
    python export.py output/run
    python export.py output/run --output segmenter.onnx
    python export.py output/run/segmenter_best.pth --output exported/segmenter.onnx exported/segmenter.pt2
"""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from utils.cli import add_quiet, new_parser, run, start_logging
from utils.errors import GasnetError
from utils.files import atomic_write, lock_folder
from utils.ledger import Ledger, project_version, recording

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from models.checkpoint import SegmenterFacts

TOLERANCE = 1e-3
"""Largest difference of probabilities from those of S."""


def metadata(facts: SegmenterFacts) -> dict[str, str]:
    """What an exported file says about itself: how to use it, and as JSON what is known of the segmenter."""
    return {
        "model": "GASNet segmenter: lesions of COVID-19 in chest CT; for research only, not a medical device",
        "input": "volume: float32 (batch, 1, depth, height, width) in [-1, 1], sizes multiples of 4 from 8 on",
        "output": "probability: of lesion, of the shape of the input; set it to 0 outside the lungs",
        "gasnet_version": project_version(),
        "segmenter": facts.model_dump_json(by_alias=True, exclude={"seen"}),
    }


def trace(segmenter: nn.Module) -> ExportedProgram:
    """Trace S with its sigmoid by torch.export; S on the CPU."""
    import torch
    from torch.export import Dim

    sizes = {axis: 4 * Dim(name, min=2) for axis, name in ((2, "depth"), (3, "height"), (4, "width"))}
    # Sizes that differ from each other and from 1, so that none is specialised or unified with another.
    volume = torch.zeros(2, 1, 16, 32, 48)
    probability = torch.nn.Sequential(segmenter, torch.nn.Sigmoid()).eval()
    program = torch.export.export(probability, (volume,), dynamic_shapes=({0: Dim("batch", min=1), **sizes},))
    for node in program.graph.nodes:  # contains paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def write_torch_export(program: ExportedProgram, told: dict[str, str], path: Path) -> Callable[[Tensor], Tensor]:
    """Write a .pt2 file with metadata in its extra file ``metadata.json``; return a function that runs it."""
    import torch

    file = io.BytesIO()  # torch would name a folder in the archive after the path
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(told, indent=2)})
    path.write_bytes(file.getvalue())
    return torch.export.load(path).module()


def write_onnx(program: ExportedProgram, told: dict[str, str], path: Path) -> Callable[[Tensor], Tensor]:
    """Write an .onnx file, weights included; return a function that runs it."""
    import onnx
    import onnxruntime
    import torch

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every node
    model = torch.onnx.export(
        program, dynamo=True, input_names=["volume"], output_names=["probability"], verbose=False
    ).model_proto
    for item in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]  # contains paths of this machine
    onnx.helper.set_model_props(model, told)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda volume: torch.from_numpy(session.run(None, {"volume": volume.numpy()})[0])


WRITERS = {".onnx": write_onnx, ".pt2": write_torch_export}


def export(segmenter: nn.Module, facts: SegmenterFacts, path: Path) -> float:
    """Export S, on the CPU, whose input is known; return the largest difference of probabilities on random input.

    Raises:
        GasnetError: the file does not agree with S; it is not kept.
    """
    import torch

    depth, height, width = facts.trained_on.size
    random, found = torch.Generator().manual_seed(0), []
    with atomic_write(path) as temporary, warnings.catch_warnings(action="ignore"), torch.no_grad():  # of torch's own
        exported = WRITERS[path.suffix](trace(segmenter), metadata(facts), temporary)
        for shape in ((1, 1, depth, height, width), (2, 1, depth + 4, 32, 64)):
            volume = torch.rand(*shape, generator=random) * 2 - 1
            found.append((exported(volume) - segmenter(volume).sigmoid()).abs().max())
        difference = torch.stack(found).max().item()  # NaN stays NaN
        if not difference <= TOLERANCE:
            raise GasnetError(
                f"{path}: probabilities differ by up to {difference:.2g} from those of S; not kept. Update torch, onnx "
                "and onnxscript"
            )
    return difference


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the segmenter, or the folder of a run")
    parser.add_argument("--output", type=Path, nargs="+", metavar="FILE", help="files to write, .onnx or .pt2")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if unknown := [str(path) for path in options.output or () if path.suffix not in WRITERS]:
        parser.error(f"--output {' '.join(unknown)}: expected files that end with {' or '.join(WRITERS)}")

    from models.checkpoint import PUBLISHED_INPUT, find_segmenter, load_segmenter

    start_logging(options.quiet)
    path = find_segmenter(options.model)
    segmenter, facts = load_segmenter(path, PUBLISHED_INPUT if options.output else None)
    if options.output is None:
        print(facts.describe())
        return 0
    for file in options.output:
        ledger = Ledger(file.parent, "exported")
        with lock_folder(ledger.folder), recording(ledger.folder, model=path), ledger.writing(file.name, [file]):
            difference = export(segmenter, facts, file)
        print(f"{file}: on random input, probabilities differ by at most {difference:.1g} from those of S")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
