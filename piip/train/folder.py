"""The folder of a training run: what lies where, and reading it back."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.errors import ConfigError, PiipError
from piip.files import write_json, write_text
from piip.hub import MODEL_FOLDER
from piip.train.recipe import TrainRecipe, load_recipe


@dataclass(frozen=True)
class RunFolder:
    """A training run on disk.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Losses, rates and metrics over time."""
        return self.path / "metrics.csv"

    @property
    def results(self) -> Path:
        """Metrics of the best epoch."""
        return self.path / "results.json"

    @property
    def samples(self) -> Path:
        """Drawn predictions and ground truth of validation images."""
        return self.path / "samples"

    @property
    def curves(self) -> Path:
        """Plotted curves."""
        return self.path / "curves"

    @property
    def model(self) -> Path:
        """The best weights as a model that ``piip predict`` loads."""
        return self.path / MODEL_FOLDER

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint with the best metric."""
        return self.path / "checkpoints" / "best.ckpt"

    def write(self, recipe: TrainRecipe, environment: dict[str, Any], resume: bool = False) -> None:
        """Write what is known before the first step.

        Args:
            recipe: The run.
            environment: Versions and hardware.
            resume: The run goes on. A run that stopped before its first checkpoint may begin anew in any case.

        Raises:
            ConfigError: The folder holds another run.
            PiipError: It cannot be written.
        """
        if not resume and (self.last.exists() or self.best.exists() or self.model.exists()):
            raise ConfigError(
                f"{self.path} already holds a run; add --resume to continue it or choose another --out."
            )
        write_text(self.config, "# The recipe of this run, every default written out.\n" + recipe.to_yaml())
        write_json(self.path / "environment.json", environment)

    def recipe(self) -> TrainRecipe:
        """Return the recipe of the run.

        Raises:
            ConfigError: The folder holds no run.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} holds no run: config.yaml is missing; check the path.")
        return load_recipe(self.config)

    def read_results(self) -> dict[str, Any]:
        """Return the content of results.json.

        Raises:
            PiipError: The run has not been evaluated yet, or the file is damaged.
        """
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
        except OSError as error:
            raise PiipError(
                f"{self.path} has no results.json yet; let the run finish an evaluation."
            ) from error
        except ValueError as error:
            raise PiipError(f"{self.results} is damaged ({error}); train the run again.") from error
        if not isinstance(results, dict) or "epoch" not in results:
            raise PiipError(f"{self.results} holds no results of a run; train the run again.")
        return results

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv without their empty cells.

        Raises:
            PiipError: The file is damaged.
        """
        if not self.metrics.is_file():
            return []
        try:
            with self.metrics.open(newline="", encoding="utf-8") as file:
                rows = [
                    {key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)
                ]
        except (ValueError, TypeError, csv.Error) as error:
            raise PiipError(f"{self.metrics} is damaged ({error}); delete the broken rows.") from error
        if any("step" not in row for row in rows):
            raise PiipError(f"{self.metrics} is damaged (a row has no step); delete the broken rows.")
        return rows
