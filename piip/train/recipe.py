"""A recipe: everything that decides a training run, as one tree of dataclasses and as a YAML file."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from piip.data.settings import AugmentConfig, ImageConfig
from piip.described import Described
from piip.errors import ConfigError, nearest, require
from piip.train.settings import LanguageConfig, OptimizerConfig, ScheduleConfig
from piip.train.typed import parse_dataclass

Strategy = Literal["auto", "ddp", "fsdp"]
Precision = Literal["32", "bf16"]
TaskName = Literal["detection", "segmentation", "classification", "multimodal"]

BASE_KEY = "base"

_AUGMENT_OF = {
    "segmentation": ("ratios", "largest_share", "photometric"),
    "classification": (
        "auto_augment",
        "color_jitter",
        "random_erasing",
        "mixup",
        "cutmix",
        "label_smoothing",
    ),
}
"""Random changes that one task alone knows."""


@dataclass(frozen=True)
class ModelRecipe(Described, called="model"):
    """The network: a published one by ``name``, any timm networks by ``branches``, or a saved model by ``start``.

    Attributes:
        name: A published configuration; ``piip list`` shows all.
        branches: timm names, smallest network first, instead of a name.
        sizes: Image sides in pixels, in the order of ``branches``.
        changes: With ``name``: fields of PIIPConfig to replace. With ``branches``: further arguments of piip.build.
        pretrained: Load the pretrained weights that the branches name.
        weights: Weights of single branches: a branch number (1 = the largest network) and a file or timm name.
        freeze: Numbers of the branches that are not trained.
        start: A run or saved model to go on from, with its head and classes.
        new_head: With ``start``: keep the network only and start a new head for the classes of the data.
    """

    name: str | None = None
    branches: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: dict[int, str] = field(default_factory=dict)
    freeze: tuple[int, ...] = ()
    start: str | None = None
    new_head: bool = False

    def check(self) -> None:
        """Refuse two descriptions at once."""
        given = [key for key in ("name", "branches", "start") if getattr(self, key)]
        if len(given) > 1:
            raise ConfigError(
                f"model has {' and '.join(given)}; give exactly one of name, branches and start."
            )


@dataclass(frozen=True)
class DataRecipe(Described, called="data"):
    """The data set.

    Attributes:
        folder: A COCO, Roboflow or YOLO folder; for segmentation ADE20K, Cityscapes, images and masks, or a folder
            for detection with outlines; for classification a folder per class or tables (train.csv) of files and
            classes; for multimodal the folder of files of conversations and questions.
        train: Split that is trained on; for multimodal a file of conversations.
        val: Split that is evaluated; for multimodal a file of conversations, or of questions in POPE's or TextVQA's
            form.
        images: Multimodal: where the names of images begin; found beside the conversations by default.
        classes: Class names to keep, in label order; all when empty. For masks without a list of names: what their
            values are called.
        keep_empty: Train on images without objects, too.
        batch_size: Training images per device and step.
        eval_batch_size: Validation images per device.
        workers: Loader processes per device.
    """

    folder: str = ""
    train: str = "train"
    val: str = "val"
    images: str | None = None
    classes: tuple[str, ...] = ()
    keep_empty: bool = False
    batch_size: int = 2
    eval_batch_size: int = 1
    workers: int = 2

    def check(self) -> None:
        """Refuse numbers that no loader can have."""
        self.check_range("batch_size", 1)
        self.check_range("eval_batch_size", 1)
        self.check_range("workers", 0)


@dataclass(frozen=True)
class TrainerRecipe(Described, called="trainer"):
    """How long, where and how training runs.

    Attributes:
        epochs: Passes over the training split.
        accelerator: ``auto``, ``cpu``, ``gpu`` or another of Lightning's.
        devices: Devices of one machine; ``auto`` = all.
        nodes: Machines.
        strategy: ``ddp`` copies the model to every device, ``fsdp`` shards it; ``auto`` = ddp from two devices.
        precision: ``bf16`` runs the network in bfloat16 where that is safe; heads stay in float32.
        accumulate: Batches per optimiser step.
        clip_norm: Largest norm of the gradient; none when null.
        ema_decay: Decay of the exponential moving average of the weights; none when null.
        grad_checkpointing: ``true`` computes blocks again in the backward pass: half the memory, a third more time;
            ``light`` norms and activations alone: a fifth less memory, hardly more time.
        eval_every: Epochs between evaluations; the last epoch is always evaluated.
        save_every: Steps between checkpoints within an epoch; only at its end when null.
        max_detections: Detections per image that count in evaluation; raise it where images hold more objects.
        log_every: Steps between rows of metrics.csv.
        samples: Validation images drawn with predictions at the end.
        seed: Seed of everything random.
    """

    epochs: int = 12
    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    strategy: Strategy = "auto"
    precision: Precision = "32"
    accumulate: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    grad_checkpointing: bool | Literal["light"] = False
    eval_every: int = 1
    save_every: int | None = None
    max_detections: int = 100
    log_every: int = 10
    samples: int = 8
    seed: int = 0

    def check(self) -> None:
        """Refuse numbers that no run can have."""
        for name in ("epochs", "nodes", "accumulate", "eval_every", "save_every"):
            self.check_range(name, 1)
        for name in ("max_detections", "log_every"):
            self.check_range(name, 1)
        for name in ("samples", "seed"):
            self.check_range(name, 0)
        self.check_range("clip_norm", 0, above=True)
        self.check_range("ema_decay", 0, 1, above=True)
        if self.devices != "auto" and not (str(self.devices).isdigit() and int(self.devices)):
            raise ConfigError(f"trainer.devices is {self.devices!r}; give a number from 1, or auto.")
        if self.ema_decay is not None and self.strategy == "fsdp":
            raise ConfigError(
                "trainer.ema_decay does not work with strategy fsdp; set one of them to null or ddp."
            )


@dataclass(frozen=True)
class TrainRecipe(Described, called="recipe"):
    """A training run.

    Attributes:
        name: Name of the run; that of the recipe file by default.
        task: What the model learns: ``detection`` (with masks: instance segmentation), ``segmentation`` (a class
            for every pixel), ``classification`` (a class for the image) or ``multimodal`` (answers about images).
        model: The network and the weights it starts from.
        data: The data set and its batches.
        image: How images are prepared; saved with the model.
        augment: Random changes of training images.
        detector: ``kind`` of the detector (``rcnn``, ``cascade_rcnn`` or ``dino``) and its settings that differ
            from the released ones, such as ``masks: false``; the fields of RCNNConfig, CascadeRCNNConfig or
            DINOConfig.
        segmenter: Settings of SegmenterConfig that differ from the released ones, such as ``channels: 256``.
        classifier: Settings of ClassifierConfig that differ from those that suit the network, such as ``token``.
        language: The language model of a PIIP-LLaVA, and what is learnt.
        optimizer: AdamW.
        schedule: The learning rate over time.
        trainer: How long, where and how.
    """

    name: str = ""
    task: TaskName = "detection"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    image: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    detector: dict[str, Any] = field(default_factory=dict)
    segmenter: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerRecipe = field(default_factory=TrainerRecipe)

    def check(self) -> None:
        """Refuse settings of another task, which would have no effect."""
        heads = {"detection": "detector", "segmentation": "segmenter", "classification": "classifier"}
        for task, head in heads.items():
            if task != self.task and getattr(self, head):
                raise ConfigError(
                    f"{head} has settings, but the task is {self.task}; remove them, or set task to {task}."
                )
        for task, names in _AUGMENT_OF.items():
            for name in names:
                if task != self.task and getattr(self.augment, name) != getattr(AugmentConfig, name):
                    raise ConfigError(
                        f"augment.{name} is {getattr(self.augment, name)!r}, which has no effect in the task "
                        f"{self.task}; it is for {task}."
                    )
        if self.task != "multimodal":
            self._check_no_language()
        elif self.image != ImageConfig() or self.augment != AugmentConfig():
            name = "image" if self.image != ImageConfig() else "augment"
            raise ConfigError(
                f"{name} has settings, which have no effect in the task multimodal; images are prepared for "
                "the network's sizes: remove them."
            )
        elif self.trainer.ema_decay is not None:
            raise ConfigError(
                "trainer.ema_decay keeps a second model, for which the task multimodal has no room; set it to null."
            )

    def _check_no_language(self) -> None:
        for name, usual in vars(LanguageConfig()).items():
            if (value := getattr(self.language, name)) != usual:
                raise ConfigError(
                    f"language.{name} is {value!r}, which has no effect in the task {self.task}; it is for "
                    "multimodal."
                )
        if self.data.images is not None:
            raise ConfigError(
                f"data.images is {self.data.images!r}, which has no effect in the task {self.task}; data.folder "
                "says where images are."
            )

    @property
    def masks(self) -> bool:
        """Whether the detector predicts masks."""
        from piip.tasks.detection import detector_class

        return bool(self.detector.get("masks", detector_class(self.detector).config_class.masks))

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every default written out."""
        yaml = require("yaml", "cli", "Writing a recipe")
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainRecipe:
    """Read a recipe file, with the files its ``base`` key names.

    Args:
        path: A YAML file.
        overrides: Values that replace the file's, under dotted names (``optimizer.lr``).

    Raises:
        ConfigError: The file is missing, is no YAML, or has an unknown key or an impossible value.
    """
    values = read_values(path)
    for name, value in (overrides or {}).items():
        *parents, last = name.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return recipe_from_dict({"name": Path(path).stem} | values, str(path))


def read_values(path: str | Path) -> dict[str, Any]:
    """Return what a recipe file says, merged over its bases and with every key checked.

    Raises:
        ConfigError: The file is missing, is no YAML mapping, or has an unknown key.
    """
    values = _read_merged(Path(path), ())
    _check_keys(values, TrainRecipe, str(path))
    return values


def recipe_from_dict(values: Mapping[str, Any], source: str = "The recipe") -> TrainRecipe:
    """Build a recipe from nested plain values.

    Raises:
        ConfigError: A key is unknown or a value impossible.
    """
    _check_keys(values, TrainRecipe, source)
    return parse_dataclass(TrainRecipe, values, source)


def _read_merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    yaml = require("yaml", "cli", "Reading a recipe")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"The recipe {path} does not exist.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The recipe {path} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path} must hold keys such as model, data and trainer.")
    base = values.pop(BASE_KEY, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"The recipe {path} has the base {base!r}; give the name of another recipe file.")
    if path.resolve() in seen:
        raise ConfigError(f"The recipe {path} is its own base; remove one of the base keys.")
    return _merge(_read_merged(path.parent / base, (*seen, path.resolve())), values)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check_keys(values: Mapping[str, Any], kind: Any, source: str, prefix: str = "") -> None:
    types = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in types:
            raise ConfigError(f"{source} has the unknown key {prefix}{key!s}. {nearest(str(key), types)}")
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {prefix}{key} is {value!r}; it has keys of its own below it.")
            _check_keys(value, types[key], source, f"{prefix}{key}.")
