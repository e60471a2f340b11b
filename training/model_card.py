"""The model card of a trained segmenter: what it is, what it was trained on, how good it is and how it is used.

A card says what the segmenter's file says, and nothing else: what the file does not know is "unknown" in the card. So
it is written for any segmenter, wherever the file has gone. It names no scans, and no folders but by their last names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from configs.settings import CONSTRAINTS, ImageSettings, Settings, parse_settings
from datasets.cohort import Case
from datasets.window import WINDOW
from evaluation.burden import NOTICE
from evaluation.metrics import THRESHOLD
from models import Segmenter
from training.checkpoint import SegmenterFacts, SegmenterInput, Training
from utils.errors import SettingsError
from utils.files import write_text
from utils.manifest import environment, project_version

CARD = "model_card.md"
PUBLISHED_INPUT = SegmenterInput(ImageSettings().size, WINDOW, ImageSettings().normalization)
"""Of the published code, whose checkpoints do not say it."""
UNKNOWN = "unknown"

_ROLES = {
    "LABELED": "training, diseased, with voxel labels",
    "WO_LABEL": "training, diseased, known as such only",
    "HEALTHY": "training, healthy",
    "VALID": "validation, with voxel labels",
    "VALIDWL": "validation, diseased without voxel labels",
    "VALIDH": "validation, healthy",
}
_INTENSITIES = {
    "minmax": "stretched by its own lowest and highest value v_min and v_max: x = 2 (v - v_min) / (v_max - v_min) - 1",
    "window": "x = 2 v / 255 - 1",
}
_EXAMPLES = {
    ".onnx": 'probability = onnxruntime.InferenceSession("{}").run(None, {{"volume": x}})[0]  # x: a NumPy array\n',
    ".pt2": 'probability = torch.export.load("{}").module()(x)  # x: a tensor\n',
}


def shareable(settings: Settings) -> Settings:
    """Settings that can be handed on: of folders and files that they name, the last name is left."""
    start = {name: None if path is None else Path(path).name for name, path in settings.init_model}
    return settings.model_copy(
        update={
            "exp": settings.exp.model_copy(update={"output_dir": "output"}),
            "dataset": settings.dataset.model_copy(update={"root": _last_name(settings.dataset.root)}),
            "init_model": settings.init_model.model_copy(update=start),
        }
    )


def _last_name(folder: str) -> str:
    return Path(folder).resolve().name or "data"  # "." has a name, the root of the file system has none


def describe_training(settings: Settings, cohort: Mapping[str, Sequence[Case]], device: torch.device) -> Training:
    """What a training run tells about itself in the files of its segmenter.

    Args:
        settings: of the experiment.
        cohort: cases by key of DATASET.SPLIT; they are counted.
        device: that is trained on.
    """
    shared = shareable(settings)
    return Training(
        cohort=shared.dataset.root,
        scans={split: len(cases) for split, cases in cohort.items()},
        settings=shared.to_yaml(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        versions={"GASNet": project_version(), **environment()["versions"]},
    )


def write_model_card(path: Path, segmenter: Segmenter, facts: SegmenterFacts) -> None:
    """Write the card of a segmenter beside its file.

    Args:
        path: of the segmenter's file.
        segmenter: S.
        facts: what its file says about it.

    Raises:
        OSError: the card cannot be written.
    """
    write_text(path.parent / CARD, model_card(segmenter, facts, path.name))


def model_card(
    segmenter: Segmenter,
    facts: SegmenterFacts,
    file: str,
    exported: Mapping[str, str] | None = None,
    licence: str = UNKNOWN,
    networks: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
        segmenter: S.
        facts: what its file says about it.
        file: name of the file, beside which the card lies.
        exported: name to description of .onnx and .pt2 files with the same segmenter.
        licence: of the weights.
        networks: name of the file with S, G and D of the same training, if there is one.
    """
    settings = _settings(facts)
    sections = (
        _what_it_is(segmenter, facts, settings, networks),
        _use_and_limits(),
        _training_data(facts),
        _training(facts, settings),
        _validation(facts),
        _input_and_output(facts),
        _how_to_use(file, settings is not None, exported or {}),
        _licence(licence),
        _versions(facts),
    )
    return "\n\n".join(sections) + "\n"


def training_settings(facts: SegmenterFacts) -> str | None:
    """The settings of a segmenter's training as YAML, None where its file does not say them."""
    return None if facts.training is None else facts.training.settings


def _settings(facts: SegmenterFacts) -> Settings | None:
    text = training_settings(facts)
    try:
        return None if text is None else parse_settings(text, "settings")
    except SettingsError:  # of a later version
        return None


def _what_it_is(segmenter: Segmenter, facts: SegmenterFacts, settings: Settings | None, networks: str | None) -> str:
    parameters = sum(weights.numel() for weights in segmenter.parameters())
    name = "a segmenter of COVID-19 lesions in chest CT" if settings is None else settings.exp.id
    others = "are not part of it" if networks is None else f"are in `{networks}`, with S, all three in half precision"
    return f"""# Model card: {name}

{NOTICE}

The segmenter S of GASNet ([Xu et al., 2020](https://arxiv.org/abs/2010.09456)), built to find the lesions of COVID-19
in chest CT: a 3D U-Net of width {segmenter.width} with {parameters:,} parameters. From a CT that is cropped to the
lungs it makes the probability of lesion at every voxel. The generator and the discriminator, which are needed to train
it, {others}.

Iteration: {_or_unknown(facts.iteration)}."""


def _use_and_limits() -> str:
    return """## Intended use and limits

Meant for research on the segmentation of COVID-19 lesions in chest CT of adults. Not meant for diagnosis, treatment or
any other decision about a patient.

What stands below on training and validation is all that is known of its quality. It is not known how good it is on
scans of other hospitals, scanners and protocols than those of its validation scans, of children, with contrast agent,
or with other diseases. Training tells healthy from diseased volumes, not COVID-19 from other dense lesions such as
those of other pneumonias, oedema or tumours: it may mark them, too. A CT without lesion may get marks. Lesions that
the lung mask leaves out are never found."""


def _training_data(facts: SegmenterFacts) -> str:
    if facts.training is None:
        return f"## Training data\n\n{UNKNOWN.capitalize()}: the file does not say."
    rows = "".join(
        f"| {split} | {_ROLES.get(split, UNKNOWN)} | {number} |\n" for split, number in facts.training.scans.items()
    )
    return f"""## Training data

Cohort: `{facts.training.cohort}`. Where its scans come from, of whom they are, and whether they are real or synthetic:
{UNKNOWN}.

| split | what | scans |
|---|---|---|
{rows}"""[:-1]


def _training(facts: SegmenterFacts, settings: Settings | None) -> str:
    if settings is None:
        return f"## Training\n\nSettings: {UNKNOWN}."
    solver, width, start = settings.solver, settings.model.width, settings.init_model
    optimizers = [getattr(solver.optimizer, network) for network in ("u", "g", "d")]
    constraints = [name for name in CONSTRAINTS if name in settings.exp.constraints]
    rows = {
        "constraint losses": ", ".join(constraints) or "none",
        "iterations planned": solver.iter_max,
        "volumes in a batch": solver.batch_size,
        "slices in a sample": settings.image.slices,
        "augmentation": "on" if settings.image.augmentation else "off",
        "width of S, G, D": f"{width.unet}, {width.g}, {width.d}",
        "optimiser of S, G, D": ", ".join(f"{o.name} {o.lr:g}" for o in optimizers),
        "steps of D": solver.discriminator_steps,
        "precision": solver.precision,
        "seed": settings.exp.seed,
        "S started from": "random weights" if start.unet is None else f"`{start.unet}`",
        "device": facts.training.device,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## Training\n\n| setting | value |\n|---|---|\n{table}"


def _validation(facts: SegmenterFacts) -> str:
    if facts.valid_dice is None:
        return f"## Validation\n\nDice: {UNKNOWN}; this file was not kept for its Dice on validation scans."
    scans = UNKNOWN if facts.training is None else facts.training.scans.get("VALID", UNKNOWN)
    return f"""## Validation

Mean Dice on the validation scans with lesion ({scans} in VALID), at the crop's resolution: {facts.valid_dice:.4f}.

Of all iterations that were validated this one was chosen by that very Dice, so the number flatters. What it is worth on
scans that took no part in the choice: {UNKNOWN}."""


def _input_and_output(facts: SegmenterFacts) -> str:
    given = facts.trained_on or PUBLISHED_INPUT
    size, (low, high) = "x".join(str(n) for n in given.size), given.window
    source = "" if facts.trained_on else "\n\nThe file does not say this; it is what the published code does."
    return f"""## Input and output

| step | what |
|---|---|
| crop | the box around the lungs, resized to {size} voxels (z, y, x; patient upright, LPS), as `lungCrop.py` does |
| window | HU from {low:g} to {high:g} become v from 0 to 255, what lies beyond is cut off |
| normalization | `{given.normalization}`: {_INTENSITIES[given.normalization]} |
| S takes | x, float32, (batch, 1, depth, height, width), in [-1, 1]; each size a multiple of 4 |
| S gives | the logit of lesion, of the same shape; its sigmoid is the probability |
| after it | probabilities outside the lung mask count as 0; lesion is what is above {THRESHOLD:g} |{source}"""


def _how_to_use(file: str, settings_known: bool, exported: Mapping[str, str]) -> str:
    config = "FOLDER/settings.yaml" if settings_known else "configs/Gan.yaml"
    text = f"""## How to use it

In the folder of GASNet's code, with FOLDER for the folder of this card:

```sh
python predict.py SCANS --model-path FOLDER/{file} --output MASKS
python test.py --config-path {config} --model-path FOLDER/{file} --output RESULTS DATASET.ROOT=COHORT
```

SCANS are raw chest CTs in HU; COHORT is a folder of crops with their masks, as `lungCrop.py` makes it."""
    if exported:
        rows = "".join(f"| `{name}` | {what} |\n" for name, what in exported.items())
        examples = "".join(_EXAMPLES[Path(name).suffix].format(name) for name in exported)
        text += f"""

Without GASNet's code, with x as above and probabilities, not logits, as the result:

| file | what |
|---|---|
{rows}
```python
{examples}```"""
    return text


def _licence(licence: str) -> str:
    return f"""## Licence and citation

Code: MIT. Weights: {licence}; the terms of the training data may bind them, too.

Zhanwei Xu, Yukun Cao, Cheng Jin, Guozhu Shao, Xiaoqing Liu, Jie Zhou, Heshui Shi, Jianjiang Feng: GASNet:
Weakly-supervised Framework for COVID-19 Lesion Segmentation. arXiv:2010.09456, 2020."""


def _versions(facts: SegmenterFacts) -> str:
    versions = {} if facts.training is None else facts.training.versions
    told = ", ".join(f"{name} {number}" for name, number in versions.items()) or UNKNOWN
    return f"## Versions\n\nTrained with: {told}."


def _or_unknown(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)
