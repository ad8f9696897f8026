"""Saving a PIIP-LLaVA and loading it; where transformers warns or raises many things, one sentence complains."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from piip.errors import CheckpointError, ConfigError, require
from piip.hub import replacing_model
from piip.llava.modeling import PiipLlavaForConditionalGeneration
from piip.llava.processing import PiipLlavaProcessor
from piip.ops import has_arithmetic

_SHARE_OF_MEMORY = 0.8  # that weights may fill


def save_llava(model: PiipLlavaForConditionalGeneration, processor: PiipLlavaProcessor, folder: Path) -> None:
    """Save a model and its processor to one folder; either both are complete or nothing is left.

    Raises:
        PiipError: The folder cannot be written.
    """
    with replacing_model(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def load_model(folder: Path, options: dict[str, Any]) -> PiipLlavaForConditionalGeneration:
    """Return the model of a folder.

    Args:
        folder: Where it was saved.
        options: Arguments of transformers' ``from_pretrained``.

    Raises:
        CheckpointError: It is damaged, its tensors do not fit its description, or an option is wrong.
    """
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    except (torch.OutOfMemoryError, ImportError):  # the folder is not to blame
        raise
    except Exception as error:  # transformers, safetensors and json each raise their own
        raise CheckpointError(f"{folder} cannot be loaded ({_reason(error)}); {_mend(options)}.") from error
    model, report = loaded
    # transformers would fill what is missing with random numbers, and leave out what does not fit, with a warning.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            name = sorted(map(str, report[kind]))[0]
            raise CheckpointError(
                f"{folder} does not fit its config.json: {len(report[kind])} {kind.replace('_keys', '')} tensors, "
                f"such as {name}; save the model again."
            )
    assert isinstance(model, PiipLlavaForConditionalGeneration)
    return model


def fast_dtype(folder: Path, device: torch.device) -> torch.dtype | Literal["auto"]:
    """Return the dtype in which a folder's model is fast on a device.

    It is the one in which it was saved ("auto"), but float32 on CPUs without arithmetic in that one, where it would
    take five times as long or more; unless memory is too small for that.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        saved = getattr(torch, str(settings.get("dtype")), torch.float32)
    except (OSError, ValueError, AttributeError):  # for transformers to complain about
        return "auto"
    if device.type != "cpu" or "quantization_config" in settings or has_arithmetic(saved):
        return "auto"
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return torch.float32 if needed < _SHARE_OF_MEMORY * psutil.virtual_memory().available else "auto"


def in_bits(bits: int) -> BitsAndBytesConfig:
    """Return transformers' settings of loading a language model in few bits.

    Args:
        bits: 8, or 4 with the settings of QLoRA: normal floats whose scales are quantised as well, computed with in
            bfloat16.

    Raises:
        ConfigError: There is no such number of bits.
        MissingExtraError: bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ConfigError(f"bits is {bits}; give 4 or 8.")
    silence_bitsandbytes()
    require("bitsandbytes", "bits", f"Loading in {bits} bits")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def silence_bitsandbytes() -> None:
    """Turn off what bitsandbytes says when it is imported, and at every layer of every token."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load_processor(folder: Path) -> PiipLlavaProcessor:
    """Return the processor of a folder.

    Raises:
        CheckpointError: There is none, it is damaged, or it is that of another kind of model.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no processor ({_reason(error)}); save it there as well: "
            "processor.save_pretrained(folder)."
        ) from error
    if not isinstance(processor, PiipLlavaProcessor):
        raise CheckpointError(
            f"{folder} holds a {type(processor).__name__}, no processor of a PIIP-LLaVA; save it there as well: "
            "processor.save_pretrained(folder)."
        )
    return processor


def _mend(options: dict[str, Any]) -> str:
    """Return what may help where loading fails: transformers refuses options and folders with the same errors."""
    chosen = [f"{name}={value!r}" for name, value in options.items() if not _is_usual(name, value)]
    if not chosen:
        return "save the model again"
    return f"leave out {', '.join(chosen)}, or save the model again if it fails without as well"


def _is_usual(name: str, value: object) -> bool:
    """Return whether every model can be loaded with an option."""
    if name == "device_map":
        return isinstance(value, dict) and list(value) == [""]
    return name == "dtype" and (value == "auto" or isinstance(value, torch.dtype))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
