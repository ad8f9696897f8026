"""Running Lightning on a training module: trainer, callbacks, resuming and interruptions."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from piip.errors import CheckpointError, ConfigError, PiipError
from piip.ops import has_arithmetic
from piip.train.checkpoints import AtomicCheckpointIO, Checkpoints, MovingAverage
from piip.train.folder import RunFolder
from piip.train.logs import CsvLogger, StepLog, tensorboard_logger
from piip.train.module import TrainingModule
from piip.train.progress import ProgressReport
from piip.train.recipe import TrainerRecipe, TrainRecipe


def fit(
    module: TrainingModule, data: L.LightningDataModule, folder: RunFolder, *, resume: bool = False
) -> L.Trainer:
    """Train a module; checkpoints, metrics and results go into the run folder.

    Args:
        module: What to train; its recipe says how.
        data: Its loaders.
        folder: Where to.
        resume: Go on from the folder's last checkpoint.

    Returns:
        The trainer. The best weights are in ``folder.best``.

    Raises:
        ConfigError: The hardware that the recipe names is not there.
        TrainingError: The loss is not finite.
        PiipError: A file cannot be written.
        KeyboardInterrupt: Ctrl-C; the last checkpoint is complete.
    """
    checkpoint = str(folder.last) if resume and folder.last.exists() else None
    with quiet():
        trainer = build_trainer(module.recipe, folder, resume=checkpoint is not None)
        _warn_of_slow_arithmetic(trainer)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        except SystemExit as end:  # Lightning leaves this way after Ctrl-C
            raise KeyboardInterrupt(str(end.__context__ or "")) from end
        except RuntimeError as error:
            known = _explained(error, checkpoint)
            if known is None:
                raise
            raise known from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    return trainer


def build_trainer(recipe: TrainRecipe, folder: RunFolder, *, resume: bool = False) -> L.Trainer:
    """Return Lightning's trainer for a recipe.

    Raises:
        ConfigError: The hardware that the recipe names is not there.
    """
    settings = recipe.trainer
    csv = CsvLogger(folder.metrics, folder.read_metrics() if resume else None)
    loggers = [logger for logger in (csv, tensorboard_logger(folder.path)) if logger is not None]
    keeper = Checkpoints(folder, settings.save_every)
    callbacks: list[L.Callback] = [StepLog(settings.log_every), ProgressReport(), keeper]
    if settings.ema_decay is not None:
        callbacks.insert(0, MovingAverage(settings.ema_decay))
    try:
        return L.Trainer(
            default_root_dir=folder.path,
            max_epochs=settings.epochs,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=_strategy(settings),
            precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_norm,
            check_val_every_n_epoch=settings.eval_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=settings.strategy != "fsdp",
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=loggers,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The hardware of the recipe is not there (accelerator {settings.accelerator}, devices "
            f"{settings.devices}): {_first_sentence(error)} Use --trainer.accelerator auto --trainer.devices 1."
        ) from error


def _warn_of_slow_arithmetic(trainer: L.Trainer) -> None:
    halved = trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu"
    if halved and trainer.is_global_zero and not has_arithmetic(torch.bfloat16):
        warnings.warn(
            "This CPU has no arithmetic in bfloat16; steps with trainer.precision 32 are faster.",
            stacklevel=3,
        )


def _strategy(settings: TrainerRecipe) -> str | Strategy:
    """Return Lightning's strategy.

    Every parameter of a detector gets a gradient in every batch, also in one without objects: none has to be
    looked for.
    """
    processes = settings.nodes * _device_count(settings)
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if settings.strategy == "ddp" or processes > 1:
        return DDPStrategy(gradient_as_bucket_view=True)  # saves a copy of all gradients
    return "auto"


def _device_count(settings: TrainerRecipe) -> int:
    if isinstance(settings.devices, int):
        return settings.devices
    if settings.devices.isdigit():
        return int(settings.devices)
    return torch.cuda.device_count() if settings.accelerator in ("auto", "gpu", "cuda") else 1


def _explained(error: RuntimeError, checkpoint: str | None) -> PiipError | None:
    """Return what an error of torch means, if the user can mend it."""
    if "loading state_dict" in str(error):
        return CheckpointError(
            f"{checkpoint} is of another model ({_first_sentence(error)}); resume with the run's own recipe."
        )
    if "parameters that were not used in producing the loss" in str(error):  # Lightning's words
        return ConfigError(
            "Parts of the model get no gradient, for which the other processes would wait; freeze their branches "
            "with model.freeze, or train on one device."
        )
    return None


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") + "."


_HINTS = (
    "Grad strides do not match",
    "LeafSpec",
    "lr_scheduler.step",
    "WeightAveraging",
    r"isinstance\(treespec",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's hints; what matters is reported by our own callbacks."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for hint in _HINTS:
            warnings.filterwarnings("ignore", message=f".*{hint}.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
