"""The settings of an experiment: read once from YAML, checked, and immutable from then on.

The keys in a config file are upper-case (``SOLVER.BATCH_SIZE``); the attributes are the same words in
lower case (``settings.solver.batch_size``). ``configs/Gan.yaml`` explains every one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.errors import SettingsError

CONSTRAINTS = ("recons", "origImgToD", "genImgToD", "perception", "MIL")
"""Constraint losses that are on when their name stands in EXP.ID."""

LABELS = ("sample", "sample1", "focal", "finetune", "mosmed", "demo", "weak", "supervised")
"""Words in EXP.ID that name an experiment and switch nothing."""

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
FileName = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00-\x1f]*$")]

_LARGEST_FILE = 2**20
_LONGEST_NUMBER = 40
_MOST_FINDINGS = 10


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=str.upper,
        populate_by_name=True,
    )


class ExperimentSettings(_Section):
    """EXP: what this run is called, where its results go, and its seed."""

    id: Annotated[str, Field(pattern=r"^\w[\w.\-]*$", max_length=200)] = (
        "sample1_recons_origImgToD_genImgToD_perception_MIL"
    )
    output_dir: FileName = "output"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the id, split at underscores."""
        return tuple(word for word in self.id.split("_") if word)

    @property
    def constraints(self) -> frozenset[str]:
        """Names of the constraint losses that the id switches on."""
        return frozenset(self.words) & frozenset(CONSTRAINTS)

    @property
    def folder(self) -> Path:
        """Where the results of this run are written."""
        return Path(self.output_dir) / self.id


class SplitSettings(_Section):
    """DATASET.SPLIT: the id lists; the role of a list is its key here, whatever the list is called."""

    labeled: FileName = "train_id_L"
    wo_label: FileName = "train_id_WL"
    healthy: FileName = "train_id_H"
    valid: FileName | None = "valid_id_L"
    validwl: FileName | None = None
    validh: FileName | None = None
    test: FileName | None = None
    testh: FileName | None = None


class DatasetSettings(_Section):
    """DATASET: the cohort folder and its splits."""

    root: FileName = "data"
    split: SplitSettings = SplitSettings()


class DataloaderSettings(_Section):
    """DATALOADER: how batches are prepared."""

    num_workers: Annotated[int, Field(ge=0)] = 4
    timeout: NotNegative = 600.0
    cache_mb: Annotated[int, Field(ge=0)] = 2000


class ImageSettings(_Section):
    """IMAGE: what a sample looks like."""

    size: Annotated[tuple[Count, Count, Count], Field(strict=False)] = (40, 160, 160)
    slices: Count = 32
    normalization: Literal["minmax", "window"] = "minmax"
    augmentation: bool = True

    @model_validator(mode="after")
    def _networks_take_it(self) -> ImageSettings:
        depth, height, width = self.size
        if self.slices > depth:
            raise ValueError(f"SLICES must be at most the depth in SIZE, {depth}, got {self.slices}")
        if self.slices % 16 or depth % 4 or height % 32 or width % 32:
            raise ValueError(
                f"SLICES must be a multiple of 16, and SIZE of 4, 32 and 32, got {self.slices} and {list(self.size)}"
            )
        if self.slices * height * width <= 16 * 32 * 32:
            raise ValueError("SLICES and SIZE must be above 16 slices of 32x32, which leave G and D a single voxel")
        return self


class WidthSettings(_Section):
    """MODEL.WIDTH: base widths (channels of the first layer) of the networks."""

    unet: Count = 20
    g: Count = 32
    d: Count = 32


class ModelSettings(_Section):
    """MODEL: the size of the networks."""

    width: WidthSettings = WidthSettings()


class InitModelSettings(_Section):
    """INIT_MODEL: checkpoints to start from; null starts from random weights."""

    unet: FileName | None = None
    g: FileName | None = None
    d: FileName | None = None


class OptimizerSettings(_Section):
    """SOLVER.OPTIMIZER.X: optimiser of one network."""

    name: Literal["Adam", "RMSprop"]
    lr: Annotated[float, Field(gt=0, le=1)]
    weight_decay: NotNegative = 0.0


class OptimizersSettings(_Section):
    """SOLVER.OPTIMIZER: one optimiser a network."""

    u: OptimizerSettings = OptimizerSettings(name="Adam", lr=1e-4, weight_decay=1e-3)
    g: OptimizerSettings = OptimizerSettings(name="Adam", lr=1e-5, weight_decay=0.0)
    d: OptimizerSettings = OptimizerSettings(name="RMSprop", lr=1e-5, weight_decay=1e-3)


class SchedulerSettings(_Section):
    """SOLVER.LR_SCHEDULER_X: the learning rate times ``gamma`` every ``step`` iterations."""

    step: Count
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5


class LossSettings(_Section):
    """LOSS: weights of the terms, thresholds of perception, and when the late terms begin."""

    adversarial: NotNegative = 1.0
    adversarial_segmenter: NotNegative = 1.0
    segmentation: NotNegative = 100.0
    labelled: NotNegative = 5.0
    recons: NotNegative = 100.0
    mil: NotNegative = 1000.0
    mil_start: Annotated[int, Field(ge=0)] = 10_000
    perception: NotNegative = 100.0
    perception_start: Annotated[int, Field(ge=0)] = 10_000
    perception_ramp: Annotated[int, Field(ge=0)] = 0
    perception_lesion: Probability = 0.8
    perception_background: Probability = 0.2
    mil_share: Probability = 0.0
    restoration: NotNegative = 0.0
    instance_noise: NotNegative = 0.0

    @model_validator(mode="after")
    def _thresholds_ordered(self) -> LossSettings:
        if self.perception_background > self.perception_lesion:
            raise ValueError(
                f"PERCEPTION_BACKGROUND ({self.perception_background}) must not exceed "
                f"PERCEPTION_LESION ({self.perception_lesion})"
            )
        return self


class GateSettings(_Section):
    """LOSS gates of one objective: below ``below``, the value is multiplied by ``factor``."""

    below: NotNegative
    factor: NotNegative


class GatesSettings(_Section):
    """GATE: the published down-weighting of objectives that are already small."""

    enabled: bool = True
    joint: GateSettings = GateSettings(below=0.16, factor=1e-3)
    segmenter: GateSettings = GateSettings(below=0.064, factor=1e-2)
    discriminator: GateSettings = GateSettings(below=0.16, factor=1e-6)
    origimgtod: GateSettings = GateSettings(below=0.1, factor=1e-4)


class SolverSettings(_Section):
    """SOLVER: the schedule and its optimisers."""

    batch_size: Count = 4
    iter_max: Count = 300_000
    discriminator_steps: Count = 5
    optimizer: OptimizersSettings = OptimizersSettings()
    lr_scheduler_u: SchedulerSettings = SchedulerSettings(step=20_000)
    lr_scheduler_g: SchedulerSettings = SchedulerSettings(step=30_000)
    lr_scheduler_d: SchedulerSettings = SchedulerSettings(step=30_000)
    segmenter_only: bool = False
    warm_up: Annotated[int, Field(ge=0)] = 0
    segmenter_average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Annotated[int, Field(ge=0)] = 0
    precision: Literal["bf16", "bf16_anywhere", "fp32"] = "bf16"
    max_skipped: Annotated[int, Field(ge=0)] = 10


class SpeedSettings(_Section):
    """SPEED: ways of computing the same thing."""

    keep_memory: bool = True
    channels_last: bool | None = None
    compile: bool = False


class IntervalSettings(_Section):
    """INTERVAL: how often, in iterations, things other than training happen."""

    log: Count = 50
    valid: Count = 1000
    save: Count = 1000
    picture: Count = 1000
    gradients: Annotated[int, Field(ge=0)] = 0


class Settings(_Section):
    """All settings of an experiment. The defaults are the published ones."""

    exp: ExperimentSettings = ExperimentSettings()
    dataset: DatasetSettings = DatasetSettings()
    dataloader: DataloaderSettings = DataloaderSettings()
    image: ImageSettings = ImageSettings()
    model: ModelSettings = ModelSettings()
    init_model: InitModelSettings = InitModelSettings()
    solver: SolverSettings = SolverSettings()
    loss: LossSettings = LossSettings()
    gate: GatesSettings = GatesSettings()
    speed: SpeedSettings = SpeedSettings()
    interval: IntervalSettings = IntervalSettings()

    def to_yaml(self) -> str:
        """These settings, defaults included, as YAML that `read_settings` reads back."""
        return yaml.safe_dump(self.model_dump(by_alias=True, mode="json"), sort_keys=False, width=110)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader of plain YAML: values are written out, a key is given once, and ``1e-4`` is a number as in YAML 1.2.

    Without aliases no short text stands for a gigabyte, and without tags none makes anything but plain values.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        for given, what in ((event.anchor, "anchors (&) and aliases (*)"), (getattr(event, "tag", None), "tags (!)")):
            if given is not None:
                raise yaml.MarkedYAMLError(problem=f"{what} are not read", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.Node) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(node.value)} characters", problem_mark=node.start_mark
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"the key {_short(repr(key))} is not a word"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            if key in seen:
                problem = f"the key {_short(key)} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = _short(str(error.problem or error.context), 200)
        raise SettingsError(f"{source}{line}: {problem}; expected plain YAML") from None
    except RecursionError:
        raise SettingsError(f"{source}: nested too deeply; expected sections of settings") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise SettingsError(f"{source}: not readable as YAML: {_short(str(error).splitlines()[0], 200)}") from None


def _short(text: str, length: int = 60) -> str:
    """A text for a message: its beginning where it is long."""
    return text if len(text) <= length else f"{text[:length]}..."


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    assignment = _short(assignment, 200)
    words = key.split(".")
    if not equals or not all(words):
        raise SettingsError(f"{assignment}: expected an override of the form KEY.SUB=value")
    *parents, last = words
    node = tree
    for depth, word in enumerate(parents):
        if node.get(word) is None:
            node[word] = {}
        node = node[word]
        if not isinstance(node, dict):
            raise SettingsError(f"{assignment}: {'.'.join(words[: depth + 1])} has no settings below it")
    node[last] = _parse_yaml(text, assignment)


def _explain(error: ValidationError, source: str) -> str:
    findings = []
    for item in error.errors():
        key = ".".join(_short(str(part)) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            finding = f"{key}: unknown setting{_known_keys(item['loc'])}"
        else:
            expected = item["msg"].removeprefix("Value error, ")
            expected = expected[0].lower() + expected[1:] if expected.startswith("Input") else expected
            given = "" if item["type"] in ("value_error", "missing") else f", got {_short(repr(item['input']))}"
            finding = f"{key}: {expected.replace('input should be', 'expected')}{given}".lstrip(": ")
        findings.append(finding)
    if len(findings) > _MOST_FINDINGS:
        findings[_MOST_FINDINGS:] = [f"and {len(findings) - _MOST_FINDINGS} more"]
    return f"{source}: " + "; ".join(findings)


def _known_keys(location: Sequence[str | int]) -> str:
    section: Any = Settings
    for word in location[:-1]:
        fields = {name.upper(): field for name, field in section.model_fields.items()}
        section = fields[str(word)].annotation
    return "; known here: " + ", ".join(name.upper() for name in section.model_fields)


def read_settings(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read and check the settings of an experiment.

    Args:
        path: a YAML file; keys it leaves out have the published values. None: published values only.
        overrides: ``KEY.SUB=value`` each, applied in order over the file; the value is read as YAML.

    Raises:
        SettingsError: the file cannot be read, or a key is unknown, given twice, of the wrong type or
            out of range. The message is one line that names the key and what was expected.
    """
    tree: dict[str, Any] = {}
    source = "settings"
    if path is not None:
        source = str(path)
        try:
            with Path(path).open("rb") as file:
                content = file.read(_LARGEST_FILE + 1)
            if len(content) > _LARGEST_FILE:
                raise SettingsError(f"{path}: larger than 1 MB; expected a YAML file such as configs/Gan.yaml")
            text = content.decode()
        except UnicodeDecodeError:
            raise SettingsError(f"{path}: not UTF-8 text; expected a YAML file such as configs/Gan.yaml") from None
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}; expected a YAML file such as configs/Gan.yaml") from None
        tree = _tree(text, source)
    for assignment in overrides:
        _override(tree, assignment)
    return _validated(tree, source)


def parse_settings(text: str, source: str) -> Settings:
    """Settings from YAML, as `Settings.to_yaml` writes it.

    Args:
        text: YAML.
        source: where it comes from, for messages.

    Raises:
        SettingsError: as `read_settings` does.
    """
    return _validated(_tree(text, source), source)


def _tree(text: str, source: str) -> dict[str, Any]:
    tree = _parse_yaml(text, source)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise SettingsError(f"{source}: expected sections such as EXP and DATASET, got {type(tree).__name__}")
    return tree


def _validated(tree: dict[str, Any], source: str) -> Settings:
    try:
        return Settings.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        raise SettingsError(_explain(error, source)) from None


def unknown_words(settings: Settings) -> str | None:
    """A warning about words of EXP.ID that are neither a constraint nor a known label, or None."""
    unknown = [word for word in settings.exp.words if word not in (*CONSTRAINTS, *LABELS)]
    if not unknown:
        return None
    return (
        f"EXP.ID: {', '.join(unknown)} switches nothing; constraint losses: {', '.join(CONSTRAINTS)}; "
        f"labels without effect: {', '.join(LABELS)}"
    )
