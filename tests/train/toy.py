"""A training module without images, for what all tasks share."""

import dataclasses
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from piip.config import BranchConfig, PIIPConfig, even_ranges
from piip.data.sampler import GroupedBatchSampler
from piip.network import PIIP
from piip.train.data import ResumableLoader
from piip.train.module import TrainingModule
from piip.train.recipe import TrainerRecipe, TrainRecipe
from piip.train.settings import OptimizerConfig, ScheduleConfig


class Noise(Dataset):
    """Random images that depend on epoch and index, like augmented ones."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> tuple[Tensor, tuple[int, int]]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        return torch.randn(3, 64, 64, generator=generator), (epoch, index)


def collate(items: list[Any]) -> tuple[Tensor, list[tuple[int, int]]]:
    return torch.stack([image for image, _ in items]), [key for _, key in items]


class ToyData(L.LightningDataModule):
    def __init__(self, length: int = 7, workers: int = 0) -> None:
        super().__init__()
        self.length, self.workers = length, workers

    def train_dataloader(self) -> ResumableLoader:
        groups = np.arange(self.length) % 2
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = GroupedBatchSampler(groups, 1, rank=rank, world_size=world)
        return ResumableLoader(Noise(self.length), sampler, self.workers, collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Noise(2), collate_fn=collate)


class ToyModule(TrainingModule):
    """Predicts the mean of an image, with noise as dropout would add it."""

    def __init__(self, recipe: TrainRecipe, poison_step: int | None = None) -> None:
        torch.manual_seed(recipe.trainer.seed)
        branch = BranchConfig(
            "vit_tiny_patch16_224",
            64,
            even_ranges(2, 2),
            options={"embed_dim": 32, "depth": 2, "num_heads": 2},
        )
        network = PIIP(PIIPConfig((branch, dataclasses.replace(branch, image_size=32)), size_divisor=1))
        super().__init__(nn.Sequential(network), recipe)
        self.poison_step = poison_step
        self.seen: list[tuple[int, int]] = []

    def losses(self, batch: Any) -> dict[str, Tensor]:
        image, keys = batch
        self.seen += keys
        value = torch.stack([level.mean() for level in self.model(image)]).mean()
        noise = 0.1 * torch.randn(())
        poison = float("nan") if self.global_step == self.poison_step else 1.0
        return {"loss_a": (value - image.mean() + noise) ** 2 * poison, "loss_b": 0.1 * value.square()}

    def evaluate_batch(self, batch: Any) -> list[Any]:
        return [float(self.model(batch[0])[2].mean())]

    def score(self, evaluated: list[Any]) -> tuple[dict[str, Any], dict[str, float], float]:
        value = sum(evaluated)
        return {"toy": {"AP": value, "AP50": value}}, {"val/value": value}, value


def toy_recipe(**trainer: Any) -> TrainRecipe:
    settings = {"epochs": 3, "accelerator": "cpu", "devices": 1, "log_every": 1, "ema_decay": 0.9} | trainer
    return TrainRecipe(
        optimizer=OptimizerConfig(lr=1e-3, layer_decay=0.9),
        schedule=ScheduleConfig("poly", warmup_steps=3),
        trainer=TrainerRecipe(**settings),
    )
