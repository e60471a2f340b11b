"""The schema of the settings: read once from YAML, validated, and immutable.

Keys are upper case in the YAML files (``SOLVER.BATCH_SIZE``) and lower case as attributes
(``settings.solver.batch_size``). ``configs/Gan.yaml`` explains every key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from models.losses import CONSTRAINTS, Gates, Weights
from utils.errors import SettingsError, one_line
from utils.section import Section

FileName = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00-\x1f]*$")]

_LARGEST_FILE = 2**20
_LONGEST_NUMBER = 40
_MOST_FINDINGS = 10
_PUBLISHED = re.compile(r"^[^#\n]*\b(N_CLASSES|IGNORE_LABEL|ITER_SIZE|TRAIN|step_size) *:", re.MULTILINE)
"""Keys that only config files of the published code have."""


class ExperimentSettings(Section):
    """EXP: name, output folder and seed of a run."""

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
        """Constraint losses that are on."""
        return frozenset(self.words) & frozenset(CONSTRAINTS)

    @property
    def folder(self) -> Path:
        """Output folder of the run."""
        return Path(self.output_dir) / self.id


class SplitSettings(Section):
    """DATASET.SPLIT: names of the id lists. The key defines the role of a list, not its name."""

    labeled: FileName = "train_id_L"
    wo_label: FileName | None = "train_id_WL"
    healthy: FileName | None = "train_id_H"
    valid: FileName | None = "valid_id_L"
    validwl: FileName | None = None
    validh: FileName | None = None
    test: FileName | None = None
    testh: FileName | None = None


class DatasetSettings(Section):
    """DATASET: the cohort folder and its splits."""

    root: FileName = "data"
    split: SplitSettings = SplitSettings()


class DataloaderSettings(Section):
    """DATALOADER: how batches are loaded."""

    num_workers: NonNegativeInt | None = None
    timeout: NonNegativeFloat = 600.0
    cache_mb: NonNegativeInt = 2000


class ImageSettings(Section):
    """IMAGE: the crops, and the samples taken from them."""

    size: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)] = (40, 160, 160)
    window: Annotated[tuple[float, float], Field(strict=False)] = (-1250.0, 250.0)
    slices: PositiveInt = 32
    normalization: Literal["minmax", "window"] = "minmax"
    augmentation: bool = True
    shift: Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], Field(strict=False)] = (0, 0, 0)

    @model_validator(mode="after")
    def _networks_take_it(self) -> ImageSettings:
        depth, height, width = self.size
        if self.window[0] >= self.window[1]:
            raise ValueError(f"WINDOW must give the lower HU first, got {list(self.window)}")
        if self.slices > depth:
            raise ValueError(f"SLICES must be at most the depth in SIZE, {depth}, got {self.slices}")
        if self.slices % 16 or depth % 4 or height % 32 or width % 32:
            raise ValueError(
                f"SLICES must be a multiple of 16, and SIZE of 4, 32 and 32, got {self.slices} and {list(self.size)}"
            )
        if self.slices * height * width <= 16 * 32 * 32:
            raise ValueError("SLICES and SIZE must be above 16 slices of 32x32, which leave G and D a single voxel")
        return self


class WidthSettings(Section):
    """MODEL.WIDTH: channels of the first layer of each network."""

    unet: PositiveInt = 20
    g: PositiveInt = 32
    d: PositiveInt = 32


class ModelSettings(Section):
    """MODEL: the networks."""

    width: WidthSettings = WidthSettings()
    discriminator_heads: Annotated[int, Field(ge=1, le=2)] = 1


class InitModelSettings(Section):
    """INIT_MODEL: checkpoints to start from; null starts from random weights."""

    unet: FileName | None = None
    g: FileName | None = None
    d: FileName | None = None


class OptimizerSettings(Section):
    """SOLVER.OPTIMIZER.X: the optimiser of one network."""

    name: Literal["Adam", "RMSprop"]
    lr: Annotated[float, Field(gt=0, le=1)]
    weight_decay: NonNegativeFloat = 0.0


class OptimizersSettings(Section):
    """SOLVER.OPTIMIZER: one optimiser per network."""

    u: OptimizerSettings = OptimizerSettings(name="Adam", lr=1e-4, weight_decay=1e-3)
    g: OptimizerSettings = OptimizerSettings(name="Adam", lr=1e-5, weight_decay=0.0)
    d: OptimizerSettings = OptimizerSettings(name="RMSprop", lr=1e-5, weight_decay=1e-3)


class SchedulerSettings(Section):
    """SOLVER.LR_SCHEDULER_X: the learning rate is multiplied by ``gamma`` every ``step`` iterations."""

    step: PositiveInt
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5


class SolverSettings(Section):
    """SOLVER: schedule and optimisers."""

    batch_size: PositiveInt = 4
    iter_max: PositiveInt = 300_000
    discriminator_steps: PositiveInt = 5
    optimizer: OptimizersSettings = OptimizersSettings()
    lr_scheduler_u: SchedulerSettings = SchedulerSettings(step=20_000)
    lr_scheduler_g: SchedulerSettings = SchedulerSettings(step=30_000)
    lr_scheduler_d: SchedulerSettings = SchedulerSettings(step=30_000)
    lr_cosine: bool = False
    stop_after: NonNegativeInt = 0
    fill_labelled_batch: bool = False
    segmenter_only: bool = False
    segmenter_average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_skipped: NonNegativeInt = 10
    precision: Literal["bf16", "fp32"] = "bf16"

    @property
    def last_iteration(self) -> int:
        """The iteration after which a run ends."""
        return min(self.iter_max, self.stop_after or self.iter_max)


class SpeedSettings(Section):
    """SPEED: performance switches; results do not change."""

    compile: bool = False


class IntervalSettings(Section):
    """INTERVAL: iterations between log entries, validations, checkpoints and pictures."""

    log: PositiveInt = 50
    valid: PositiveInt = 1000
    save: PositiveInt = 1000
    picture: PositiveInt = 1000


class Settings(Section):
    """All settings of an experiment. The defaults are the published ones."""

    exp: ExperimentSettings = ExperimentSettings()
    dataset: DatasetSettings = DatasetSettings()
    dataloader: DataloaderSettings = DataloaderSettings()
    image: ImageSettings = ImageSettings()
    model: ModelSettings = ModelSettings()
    init_model: InitModelSettings = InitModelSettings()
    solver: SolverSettings = SolverSettings()
    loss: Weights = Weights()
    gate: Gates = Gates()
    speed: SpeedSettings = SpeedSettings()
    interval: IntervalSettings = IntervalSettings()

    @model_validator(mode="after")
    def _training_has_its_splits(self) -> Settings:
        for key in self.training_splits:
            if getattr(self.dataset.split, key.lower()) is None:
                raise ValueError(
                    f"DATASET.SPLIT.{key} must name a list; only SOLVER.SEGMENTER_ONLY does without WO_LABEL, and with "
                    "LOSS.HEALTHY=0 without HEALTHY"
                )
        return self

    @property
    def training_splits(self) -> tuple[str, ...]:
        """Keys of DATASET.SPLIT that training reads batches from."""
        if not self.solver.segmenter_only:
            return ("LABELED", "WO_LABEL", "HEALTHY")
        return ("LABELED", "HEALTHY") if self.loss.healthy else ("LABELED",)

    def to_yaml(self) -> str:
        """YAML of all settings, including defaults; `read_settings` reads it back."""
        return yaml.safe_dump(self.model_dump(by_alias=True, mode="json"), sort_keys=False, width=110)


class _Loader(yaml.SafeLoader):
    """A SafeLoader without aliases, tags, repeated keys and very long numbers; ``1e-4`` is a number, as in YAML 1.2.

    Aliases let a short text expand to gigabytes, and tags can construct objects.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        for given, what in ((event.anchor, "anchors (&) and aliases (*)"), (getattr(event, "tag", None), "tags (!)")):
            if given is not None:
                _refuse(f"{what} are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.Node) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
            _refuse(f"a number of {len(node.value)} characters", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                _refuse(f"the key {_shorten(repr(key))} is not a word", node.start_mark)
            if key in seen:
                _refuse(f"the key {_shorten(key)} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _refuse(problem: str, mark: yaml.Mark) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _parse(text: str, source: str) -> Any:
    """Parse YAML of plain values; `source` stands in error messages."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = _shorten(str(error.problem or error.context), 200)
        raise SettingsError(f"{source}{line}: {problem}; expected plain YAML") from None
    except RecursionError:
        raise SettingsError(f"{source}: nested too deeply; expected sections of settings") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise SettingsError(f"{source}: not valid YAML: {_shorten(one_line(error), 200)}") from None


def _override(tree: dict[str, Any], assignment: str) -> dict[str, Any]:
    key, equals, text = assignment.partition("=")
    assignment = _shorten(assignment, 200)
    if not equals or not all(words := key.split(".")):
        raise SettingsError(f"{assignment}: expected an override of the form KEY.SUB=value")
    value = _parse(text, assignment)
    for word in reversed(words):
        value = {word: value}
    return _merged(tree, value)


def _merged(below: Any, above: Any) -> Any:
    """Settings over others, key by key: a section that is given in part keeps its other keys."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _explain(error: ValidationError, source: str) -> str:
    findings = []
    for item in error.errors():
        key = ".".join(_shorten(str(part)) for part in item["loc"])
        expected = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if item["type"] == "extra_forbidden":
            expected = f"unknown setting{_known_keys(item['loc'])}"
        elif item["type"] not in ("value_error", "missing"):
            expected += f", got {_shorten(repr(item['input']))}"
        findings.append(f"{key}: {expected}".lstrip(": "))
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
    """Read and check the settings of an experiment, from a YAML file; keys that are missing have published values.

    Overrides are ``KEY.SUB=value`` assignments, applied in order. The value is parsed as YAML; that of a section
    replaces the keys that it names.

    Raises:
        SettingsError: the file cannot be read or is one of the published code, or a key is unknown, repeated, of the
            wrong type or out of range. The message is one line that names the key and the expected value.
    """
    if path is None:
        return read_settings_text("", "settings", overrides)
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8 text; expected a YAML file such as configs/Gan.yaml") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; expected a YAML file such as configs/Gan.yaml") from None
    if len(content) > _LARGEST_FILE:
        raise SettingsError(f"{path}: larger than 1 MB; expected a YAML file such as configs/Gan.yaml")
    return read_settings_text(text, str(path), overrides)


def read_settings_text(text: str, source: str, overrides: Sequence[str] = ()) -> Settings:
    """Read and check settings from YAML; as `read_settings`, `source` stands in error messages."""
    if _PUBLISHED.search(text):
        raise SettingsError(
            f"{source}: a config file of the published code; docs/differences.md says what its keys are called "
            "here, configs/published.yaml has the values of the known one"
        )
    tree = _parse(text, source)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise SettingsError(f"{source}: expected sections such as EXP and DATASET, got {type(tree).__name__}")
    for assignment in overrides:
        tree = _override(tree, assignment)
    try:
        return Settings.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        raise SettingsError(_explain(error, source)) from None


def misspelt_constraints(settings: Settings) -> str | None:
    """A warning about words of EXP.ID that look like a misspelt constraint loss, or None."""
    lower = {name.lower(): name for name in CONSTRAINTS}
    found = {
        word: lower[matches[0]]
        for word in settings.exp.words
        if word not in CONSTRAINTS and (matches := get_close_matches(word.lower(), lower, n=1, cutoff=0.75))
    }
    if not found:
        return None
    listed = ", ".join(f"{word} (did you mean {name}?)" for word, name in found.items())
    return f"EXP.ID: {listed} has no effect; the constraint losses are {', '.join(CONSTRAINTS)}"
