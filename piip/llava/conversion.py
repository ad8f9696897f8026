"""Released PIIP-LLaVA checkpoints as models of ours (SPEC 11)."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

from piip.config import PIIPConfig
from piip.convert.official import translate_network
from piip.errors import CheckpointError, ConfigError
from piip.llava.assembly import add_image_token, vocabulary_rows
from piip.llava.configuration import PiipLlavaConfig
from piip.llava.modeling import PiipLlavaForConditionalGeneration
from piip.llava.processing import PiipLlavaProcessor
from piip.meta import on_meta
from piip.network import build_on_meta
from piip.tasks.multimodal.projector import projector_state_dict
from piip.weights import account_for, read_state_dict

State = dict[str, Tensor]

TOWER, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector."
_RECOMPUTED = ".rotary_emb.inv_freq"


def convert_llava(
    folder: str | Path, network: PIIPConfig
) -> tuple[PiipLlavaForConditionalGeneration, PiipLlavaProcessor]:
    """Read a released PIIP-LLaVA with its language model, projector and tokenizer.

    The original marks images outside of its vocabulary; ours gets one more token for them, whose row is the mean of
    all.

    Args:
        folder: The released folder: weights in one or more files, config.json, the tokenizer.
        network: The vision tower, such as ``piip.get_config("piip_convnext_b_clip_l_1024_336_llava")``.

    Returns:
        The model in evaluation mode, in the precision of its weights, and its processor.

    Raises:
        CheckpointError: Something is missing, unknown or of another shape.
    """
    folder = Path(folder)
    state = read_state_dict(folder)
    text = _text_config(folder)
    tokenizer, image_token_id = _tokenizer(folder)
    tower = {k.removeprefix(TOWER): v for k, v in state.items() if k.startswith(TOWER)}
    projector = {k.removeprefix(PROJECTOR): v for k, v in state.items() if k.startswith(PROJECTOR)}
    if not tower or not projector:
        raise CheckpointError(f"{folder} has no tensors under {TOWER} and {PROJECTOR}; it is no PIIP-LLaVA.")
    language = {k: v for k, v in state.items() if not k.startswith((TOWER, PROJECTOR))}

    network = dataclasses.replace(network, size_divisor=1)
    inside, unknown = translate_network(tower, build_on_meta(network))
    try:
        projected = projector_state_dict(projector)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    rows = vocabulary_rows(text.vocab_size, image_token_id)
    named = (
        {f"model.vision_tower.network.{key}": value for key, value in inside.items()}
        | {f"model.multi_modal_projector.{key}": value for key, value in projected.items()}
        | _language(language, rows)
    )
    text.vocab_size = rows
    norm = "group" if any(".norms." in f".{key}" for key in projected) else "layer"
    config = PiipLlavaConfig.of(network, text, image_token_id, projector_norm=norm)
    model = _load(config, named, [f"{TOWER}{name}" for name in unknown])
    return model, PiipLlavaProcessor.of(config, tokenizer)


def _text_config(folder: Path) -> LlamaConfig:
    """Return the language model's configuration: the fields of Llama in LLaVA's config.json."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be read ({error}); download it again."
        ) from error
    known = {field.name for field in dataclasses.fields(LlamaConfig)}
    return LlamaConfig(**{key: value for key, value in settings.items() if key in known})


def _tokenizer(folder: Path) -> tuple[Any, int]:
    """Return the tokenizer with a token for images, and that token's number."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that can be read ({error}).") from error
    return tokenizer, add_image_token(tokenizer)


def _language(state: Mapping[str, Tensor], rows: int) -> State:
    """Return the language model's tensors under our names, its vocabulary with as many rows as wanted."""
    named = {}
    for key, value in state.items():
        if key.endswith(_RECOMPUTED):
            continue
        name = key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            mean = value.float().mean(0, keepdim=True).to(value.dtype)
            value = torch.cat([value, mean.expand(rows - len(value), -1)])
        named[name] = value.contiguous()
    return named


def _load(config: PiipLlavaConfig, state: State, unknown: list[str]) -> PiipLlavaForConditionalGeneration:
    with on_meta():
        wanted = PiipLlavaForConditionalGeneration(config).state_dict()
    account_for(state, wanted, unknown)
    dtype = state["lm_head.weight"].dtype
    model = PiipLlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype
    )
    return model.eval()
