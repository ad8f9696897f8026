"""Reading tensors from files and from the Hub, never by unpickling."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from piip.branches import Branch
from piip.errors import CheckpointError, nearest

HUB_PREFIX = "hf-hub:"
WRAPPERS = ("state_dict", "module", "model")
SHOWN_KEYS = 8
ZIP, PICKLE = b"PK", b"\x80"
"""How the files of torch.save begin, new and old."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file.

    Args:
        path: A ``.safetensors`` file, a file of ``torch.save`` that holds only tensors and plain containers, or
            a folder of such files (a sharded checkpoint of transformers).

    Returns:
        The tensors by name; ``state_dict``, ``module`` and ``model`` around them are taken off.

    Raises:
        CheckpointError: The file is missing, damaged, holds more than tensors or no tensors at all.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files or not files[0].is_file():
        raise CheckpointError(f"There is no checkpoint file {path}; check the path.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        content = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle_free(file)
        tensors |= tensors_of(content, file)
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file; download it again.") from error


def read_pickle_free(path: Path) -> Any:
    """Read a file of ``torch.save`` without running anything that it contains.

    Raises:
        CheckpointError: The file is damaged or needs unpickling of arbitrary objects.
    """
    try:
        start = _first_bytes(path)
        if not start.startswith((ZIP, PICKLE)):
            raise CheckpointError(f"{path} is no PyTorch checkpoint; give a .pth or .safetensors file.")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=start == ZIP)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} holds more than tensors and would have to be unpickled, which can run foreign code; "
                "save only its state_dict, best as .safetensors."
            ) from error
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint; download it again.") from error


def read_shards(folder: Path, pattern: str) -> dict[str, Tensor]:
    """Read the tensors of all safetensors files of a folder that match a pattern; none gives none.

    Raises:
        CheckpointError: A file is damaged.
    """
    shards = sorted(folder.glob(pattern))
    return {key: value for shard in shards for key, value in read_safetensors(shard).items()}


def download(repo: str, patterns: list[str], revision: str | None = None) -> Path:
    """Return the local folder of a repository on the Hugging Face Hub.

    Args:
        repo: ``owner/name``.
        patterns: Files to take.
        revision: Branch, tag or commit; the main branch by default.

    Raises:
        CheckpointError: It cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{repo} is no path here and could not be downloaded from the Hub ({type(error).__name__}); check the "
            "name and the network."
        ) from error


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's content, without the containers around them.

    Raises:
        CheckpointError: There are no named tensors, or one holds NaN or infinity.
    """
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no named tensors; it is not the checkpoint of a network.")
    check_finite(tensors, str(path))
    return tensors


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors with NaN or infinity.

    Raises:
        CheckpointError: There is one; the message names it.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{key} in {source} holds NaN or infinity; the file cannot be used.")


def load_pretrained(branch: Branch, source: str) -> None:
    """Load published weights of a single network into a branch, resampled to its patch and grid sizes.

    Args:
        branch: The branch; parts it does not have (heads, final norms) are ignored.
        source: A timm name with its tag, ``hf-hub:owner/repo`` or a local file.

    Raises:
        CheckpointError: The source is unknown or its tensors do not fit the branch.
    """
    state = branch.adapt_state_dict(_read_source(source))
    own = branch.state_dict()
    wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
    gates = [key for key in own if key.endswith((".ls1.gamma", ".ls2.gamma"))]
    if not any(key in state for key in gates):
        # Published networks without gates on their residual branches are networks whose gates are 1.
        state |= {key: torch.ones_like(own[key]) for key in gates}
    missing = [key for key in own if key not in state]
    if wrong or missing:
        raise CheckpointError(
            f"{source} does not fit the branch {branch.config.arch}: {len(missing)} tensors missing "
            f"({', '.join(missing[:4])}), {len(wrong)} unknown or of another shape ({', '.join(wrong[:4])}); "
            "choose weights of the same architecture."
        )
    branch.load_state_dict(state, strict=False)


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], unknown: Iterable[str] = ()) -> None:
    """Load tensors into a model (also one on the meta device), accounting for every one.

    Args:
        model: The model; its tensors are replaced.
        state: Tensors under the model's names.
        unknown: Names of further tensors of the checkpoint that nothing is known about.

    Raises:
        CheckpointError: Tensors are unknown, missing or of another shape.
    """
    wanted = dict(model.state_dict())
    account_for(state, wanted, unknown)
    cast = {key: value.to(wanted[key].dtype) for key, value in state.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    _fill_buffers(model)


def account_for(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unknown: Iterable[str] = ()
) -> None:
    """Check that tensors are exactly those of a model.

    Args:
        state: Tensors under the model's names.
        wanted: The model's own, which may be on the meta device.
        unknown: Names of further tensors of the checkpoint that nothing is known about.

    Raises:
        CheckpointError: Tensors are unknown, missing or of another shape.
    """
    unknown = [*unknown, *(key for key in state if key not in wanted)]
    missing = [key for key in wanted if key not in state]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [("unknown", unknown), ("missing", missing), ("of another shape", reshaped)]
    listed = [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in problems if keys]
    if listed:
        raise CheckpointError(f"The checkpoint does not fit the model: {'; '.join(listed)}.")


def _fill_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds, where a model comes from the meta device."""
    for module in model.modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in empty:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        if empty:
            module.init_non_persistent_buffers()  # type: ignore[operator]


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more


def _read_source(source: str) -> dict[str, Tensor]:
    if source.startswith(HUB_PREFIX) and not source.removeprefix(HUB_PREFIX).startswith("timm/"):
        return _read_hub(source.removeprefix(HUB_PREFIX))
    if not source.startswith(HUB_PREFIX) and (
        "/" in source
        or Path(source).exists()
        or Path(source).suffix in {".safetensors", ".pth", ".pt", ".bin"}
    ):
        return read_state_dict(source)
    name = source.removeprefix(f"{HUB_PREFIX}timm/")
    if name not in timm.list_pretrained():
        close = nearest(name, timm.list_pretrained(f"{name.split('.')[0]}*") or timm.list_pretrained())
        raise CheckpointError(f"timm has no pretrained weights {name!r}. {close}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise CheckpointError(
            f"The weights {name!r} could not be downloaded ({type(error).__name__}); check the network, or give a "
            "local file."
        ) from error


def _read_hub(repo: str) -> dict[str, Tensor]:
    state = read_shards(download(repo, ["*.safetensors"]), "*.safetensors")
    if not state:
        raise CheckpointError(f"{repo} on the Hub has no .safetensors files, and piip reads no others.")
    return state


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)
