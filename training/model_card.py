"""The model card of a segmenter: what it is, how it was trained, how good it is, and how to use it.

A card says only what the segmenter's file says; the rest is "unknown". It names no scans, and of folders only the last
part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.settings import CONSTRAINTS, REMOVED, Settings
from datasets.cohort import Case
from evaluation.burden import NOTICE
from evaluation.metrics import THRESHOLD
from models import Segmenter
from models.checkpoint import PUBLISHED_INPUT, SegmenterFacts, Training
from utils.errors import SettingsError
from utils.files import write_text
from utils.manifest import environment, project_version
from utils.strict_yaml import parse_yaml

CARD = "model_card.md"
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
_TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
).get_template("model_card.md.j2")


def shareable(settings: Settings) -> Settings:
    """Settings that can be shared: folders and files are reduced to their last part."""
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
    """Describe a training run, for the file of its segmenter.

    Args:
        settings: settings of the experiment.
        cohort: cases by key of DATASET.SPLIT; they are counted.
        device: device of the training.
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
    """Write the model card of a segmenter beside its file.

    Args:
        path: file of the segmenter.
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
    """The model card as Markdown.

    Args:
        segmenter: S.
        facts: what its file says about it.
        file: name of the file, beside which the card lies.
        exported: name to description of .onnx and .pt2 files with the same segmenter.
        licence: licence of the weights.
        networks: name of the file with S, G and D of the same training, if there is one.
    """
    settings = _recorded_settings(facts)
    training = facts.training
    return (
        _TEMPLATE.render(
            title=_value(settings, "EXP.ID", "a segmenter of COVID-19 lesions in chest CT"),
            notice=NOTICE,
            width=segmenter.width,
            parameters=sum(weights.numel() for weights in segmenter.parameters()),
            networks=networks,
            facts=facts,
            known=lambda value: UNKNOWN if value is None else value,
            unknown=UNKNOWN,
            roles=_ROLES,
            settings=_setting_rows(settings, training.device) if settings else {},
            removed=", ".join(f"{key} {_value(settings, key)}" for key in REMOVED if _value(settings, key, 0)),
            valid_scans=UNKNOWN if training is None else training.scans.get("VALID", UNKNOWN),
            input=facts.trained_on or PUBLISHED_INPUT,
            intensities=_INTENSITIES,
            threshold=THRESHOLD,
            file=file,
            config="FOLDER/settings.yaml" if settings else "configs/Gan.yaml",
            exported=exported or {},
            licence=licence,
            versions=UNKNOWN if training is None else ", ".join(f"{name} {v}" for name, v in training.versions.items()),
        )
        + "\n"
    )


def _recorded_settings(facts: SegmenterFacts) -> dict[str, Any]:
    """The settings in a segmenter's file as nested dictionaries; empty if there are none or they cannot be read."""
    try:
        settings = {} if facts.training is None else parse_yaml(facts.training.settings, "settings")
    except SettingsError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _value(settings: dict[str, Any], key: str, default: Any = UNKNOWN) -> Any:
    """The value of a key such as ``SOLVER.ITER_MAX``; other versions may lack it."""
    value: Any = settings
    for word in key.split("."):
        value = value.get(word, default) if isinstance(value, dict) else default
    return value


def _setting_rows(settings: dict[str, Any], device: str) -> dict[str, Any]:
    words = str(_value(settings, "EXP.ID", "")).split("_")
    start = _value(settings, "INIT_MODEL.UNET", None)
    optimizers = [
        f"{_value(settings, f'SOLVER.OPTIMIZER.{n}.NAME')} {_value(settings, f'SOLVER.OPTIMIZER.{n}.LR')}"
        for n in ("U", "G", "D")
    ]
    augmentation = _value(settings, "IMAGE.AUGMENTATION")
    return {
        "constraint losses": ", ".join(name for name in CONSTRAINTS if name in words) or "none",
        "iterations planned": _value(settings, "SOLVER.STOP_AFTER", 0) or _value(settings, "SOLVER.ITER_MAX"),
        "volumes in a batch": _value(settings, "SOLVER.BATCH_SIZE"),
        "slices in a sample": _value(settings, "IMAGE.SLICES"),
        "augmentation": {True: "on", False: "off"}.get(augmentation, augmentation),
        "width of S, G, D": ", ".join(str(_value(settings, f"MODEL.WIDTH.{n}")) for n in ("UNET", "G", "D")),
        "optimiser of S, G, D": ", ".join(optimizers),
        "steps of D": _value(settings, "SOLVER.DISCRIMINATOR_STEPS"),
        "precision": _value(settings, "SOLVER.PRECISION"),
        "seed": _value(settings, "EXP.SEED"),
        "S started from": f"`{start}`" if start else "random weights",
        "device": device,
    }
