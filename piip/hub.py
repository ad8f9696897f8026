"""Saving whole models and loading them again: safetensors and one config.json, from a folder or the Hub."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

from piip._version import __version__
from piip.config import PIIPConfig
from piip.errors import CheckpointError, ConfigError, PiipError
from piip.files import cannot_write
from piip.meta import on_meta
from piip.network import PIIP
from piip.tasks.classification import ClassifierConfig, ImageClassifier
from piip.tasks.detection import Detector, describe_detector, detector_config, new_detector
from piip.tasks.segmentation import Segmenter, SegmenterConfig
from piip.weights import check_finite, download, load_exactly, read_shards

CONFIG_NAME = "config.json"
MODEL_FOLDER = "model"
"""Where a training run keeps its best model."""
MAX_SHARD_SIZE = "5GB"
LLAVA_TYPE = "piip_llava"
"""The type of a PIIP-LLaVA in its config.json, which transformers writes."""
_FILES_ON_HUB = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]  # the last two of a PIIP-LLaVA


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    push_to: str | None = None,
) -> None:
    """Save a model as safetensors and a config.json; either both are complete or nothing is left.

    Args:
        model: A `PIIP`, `Detector`, `Segmenter` or `ImageClassifier`.
        folder: Where to; an earlier model there is replaced.
        metadata: Further JSON values that belong to the model, such as how images are prepared.
        push_to: Repository on the Hugging Face Hub to upload to as well.

    Raises:
        ConfigError: piip cannot describe this kind of model, or the metadata is no JSON.
        PiipError: The folder cannot be written.
    """
    folder = Path(folder)
    description = _as_json(describe(model) | {"piip_version": __version__, "metadata": dict(metadata or {})})
    with replacing_model(folder) as temporary:
        save_torch_state_dict(model.state_dict(), temporary, max_shard_size=MAX_SHARD_SIZE)
        (temporary / CONFIG_NAME).write_text(description, encoding="utf-8")
    if push_to is not None:
        _push(folder, push_to)


@contextlib.contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files become the model of ``folder`` at the end, or not at all after an error.

    Raises:
        PiipError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            temporary = Path(name)
            yield temporary
            mode = (temporary / CONFIG_NAME).stat().st_mode  # weights are written readable by the owner alone
            # A folder without its description is not taken for a model: it goes first and comes last.
            (folder / CONFIG_NAME).unlink(missing_ok=True)
            for old in folder.glob("model*.safetensors*"):
                old.unlink()
            for path in sorted(temporary.iterdir(), key=lambda p: p.name == CONFIG_NAME):
                path.chmod(mode)
                path.replace(folder / path.name)
    except OSError as error:
        raise cannot_write(folder, error) from error


def from_pretrained(
    source: str | Path, device: str | torch.device = "cpu", revision: str | None = None
) -> nn.Module:
    """Load a model that `save_pretrained` wrote.

    Args:
        source: A folder, a training run, or ``owner/name`` of a repository on the Hugging Face Hub.
        device: Where the tensors go.
        revision: Branch, tag or commit of the repository.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or its tensors do not fit its description.
    """
    folder = find_folder(source, revision)
    description = read_description(folder)
    if description.get("kind") == LLAVA_TYPE:
        raise CheckpointError(
            f"{folder} holds a PIIP-LLaVA; load it with piip.llava.Answerer.load or transformers' "
            "AutoModelForImageTextToText."
        )
    with on_meta():
        model = _build(description, folder)
    state = read_shards(folder, "model*.safetensors")
    check_finite(state, str(folder))
    load_exactly(model, state)
    return model.to(device).eval()


def sketch(folder: Path) -> nn.Module:
    """Return a saved model with random weights, on the default device; of a PIIP-LLaVA, its network.

    Raises:
        CheckpointError: There is no model, or its description is damaged.
    """
    return _build(read_description(folder), folder)


def read_description(folder: Path) -> dict[str, Any]:
    """Return what config.json says of a saved model; of a PIIP-LLaVA, only what it says of the network.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = folder / CONFIG_NAME
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds no model: {CONFIG_NAME} is missing; check the path."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); save or download the model again.") from error
    if isinstance(description, dict) and description.get("model_type") == LLAVA_TYPE:
        description = {"kind": LLAVA_TYPE, **(description.get("vision_config") or {})}
    if not isinstance(description, dict) or "network" not in description:
        raise CheckpointError(f"{path} does not describe a piip model; it has no 'network'.")
    return description


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a model: of a training run, the model inside; else from the Hub.

    Raises:
        CheckpointError: There is no such folder and the Hub has none either.
    """
    folder = Path(source)
    if folder.is_dir():
        inside = folder / MODEL_FOLDER
        return inside if (inside / CONFIG_NAME).is_file() else folder
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"There is no model folder {source}; check the path.")
    return download(name, _FILES_ON_HUB, revision)


def is_llava(folder: Path) -> bool:
    """Return whether a model's folder holds a PIIP-LLaVA, which transformers loads and saves."""
    try:
        description = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads the folder says what is wrong with it
        return False
    return isinstance(description, dict) and description.get("model_type") == LLAVA_TYPE


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the kind of a model and the descriptions of its parts.

    Raises:
        ConfigError: It is no model of piip.
    """
    if isinstance(model, PIIP):
        return {"kind": "network", "network": model.config.to_dict()}
    if isinstance(model, ImageClassifier):
        return {
            "kind": "classifier",
            "network": model.network.config.to_dict(),
            "head": model.config.to_dict(),
        }
    if isinstance(model, Detector) and isinstance(model.backbone, PIIP):
        return {
            "kind": "detector",
            "network": model.backbone.config.to_dict(),
            "head": describe_detector(model),
        }
    if isinstance(model, Segmenter) and isinstance(model.backbone, PIIP):
        return {
            "kind": "segmenter",
            "network": model.backbone.config.to_dict(),
            "head": model.config.to_dict(),
        }
    raise ConfigError(
        f"{type(model).__name__} cannot be saved; save a PIIP, or an ImageClassifier, a Detector or a Segmenter on "
        "one."
    )


def _build(description: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        network = PIIP(PIIPConfig.from_dict(description["network"]))
        kind = description.get("kind")
        if kind in ("network", LLAVA_TYPE):
            return network
        if kind == "classifier":
            return ImageClassifier(ClassifierConfig.from_dict(description["head"]), network)
        if kind == "detector":
            return new_detector(detector_config(description["head"], {}), network)
        if kind == "segmenter":
            return Segmenter(SegmenterConfig.from_dict(description["head"]), network)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} describes no possible model: {error}") from error
    raise CheckpointError(
        f"{folder / CONFIG_NAME} describes a {kind!r}, which this version of piip does not know."
    )


def _as_json(description: dict[str, Any]) -> str:
    try:
        return json.dumps(description, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The metadata cannot be saved ({error}); give numbers, texts, lists and dictionaries."
        ) from error


def _push(folder: Path, repo: str) -> None:
    from huggingface_hub import create_repo, upload_folder

    try:
        create_repo(repo, exist_ok=True)
        upload_folder(repo_id=repo, folder_path=folder, allow_patterns=["*.safetensors*", CONFIG_NAME])
    except Exception as error:
        raise PiipError(
            f"{repo} could not be uploaded ({type(error).__name__}); the model is saved in {folder}. Log in with "
            "`hf auth login` and check the name."
        ) from error
