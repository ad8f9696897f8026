"""Putting a PIIP-LLaVA together: a network, a language model with its tokenizer, new projectors between them."""

from typing import Any, Literal

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from piip.config import PIIPConfig
from piip.errors import ConfigError
from piip.llava.configuration import PiipLlavaConfig
from piip.llava.modeling import PiipLlavaForConditionalGeneration, new_projector
from piip.llava.processing import CHAT_TEMPLATE, IMAGE_TOKEN, PiipLlavaProcessor
from piip.meta import on_meta
from piip.network import PIIP

VOCABULARY_STEP = 64
"""Vocabularies are filled up to its multiple, so that matrices have even sizes."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def describe_llava(
    network: PIIPConfig,
    language: str,
    chat: Literal["vicuna", "own"] = "vicuna",
    **options: Any,
) -> tuple[PiipLlavaConfig, PiipLlavaProcessor]:
    """Return the configuration and the processor of a network before a language model; no weight is read.

    Args:
        network: One map per branch: ``merging.kind`` is ``none``.
        language: A causal language model with its tokenizer: a folder or a name on the Hub.
        chat: Form of a conversation: Vicuna's, as released, or the tokenizer's own.
        options: ``projector_norm``, ``out_grid`` and ``keep_aspect_ratio`` of `PiipLlavaConfig`.

    Raises:
        ConfigError: There is no such language model, its tokenizer has no form of a conversation, or the network
            merges its branches.
    """
    tokenizer = _read(AutoTokenizer, language, "tokenizer")
    text = _read(AutoConfig, language, "language model")
    image_token_id = add_image_token(tokenizer)
    if chat == "own" and not tokenizer.chat_template:
        raise ConfigError(f"The tokenizer of {language} has no chat template of its own; set chat to vicuna.")
    text.vocab_size = vocabulary_rows(text.vocab_size, image_token_id)
    config = PiipLlavaConfig.of(network, text, image_token_id, **options)
    template = CHAT_TEMPLATE if chat == "vicuna" else tokenizer.chat_template
    return config, PiipLlavaProcessor.of(config, tokenizer, template)


def assemble(
    config: PiipLlavaConfig, network: PIIP, language: str, dtype: torch.dtype = torch.float32
) -> PiipLlavaForConditionalGeneration:
    """Return a model of a network and a pretrained language model; its projectors are random.

    Args:
        config: What `describe_llava` returned for both.
        network: Becomes part of the model.
        language: A folder or a name on the Hub.
        dtype: Of the language model's weights.

    Raises:
        ConfigError: There is no such language model, or its head has a bias.
    """
    llm = _read(AutoModelForCausalLM, language, "language model", dtype=dtype)
    head = llm.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ConfigError(f"The head of {language} has a bias, which LLaVA's has not; choose another model.")
    _fill_vocabulary(llm, config.text.vocab_size)
    with on_meta():
        model = PiipLlavaForConditionalGeneration(config)
    model.model.vision_tower.network = network
    model.model.multi_modal_projector = new_projector(config, network.out_channels)
    model.model.language_model = llm.base_model
    model.lm_head = llm.get_output_embeddings()
    for name in _TOKENS:
        setattr(model.generation_config, name, getattr(llm.generation_config, name))
    return model


def add_image_token(tokenizer: Any) -> int:
    """Give a tokenizer a token for images, if it has none, and return its number."""
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def vocabulary_rows(size: int, image_token_id: int) -> int:
    """Return the rows of an embedding of ``size`` words and a token for images."""
    return -(-max(size, image_token_id + 1) // VOCABULARY_STEP) * VOCABULARY_STEP


def unmerged(network: PIIP) -> PIIP:
    """Return a network with the same branches and interactions that gives one map per branch."""
    if network.config.merging.kind == "none":
        return network
    with on_meta():
        alone = PIIP(network.config.replace(merging={"kind": "none", "pyramid_levels": ()}))
    state = network.state_dict()
    alone.load_state_dict({name: state[name] for name in alone.state_dict()}, assign=True)
    return alone.requires_grad_(True)


@torch.no_grad()
def _fill_vocabulary(llm: Any, rows: int) -> None:
    """Add rows to the embedding and the head; each is the mean of all, so that none stands out."""
    known = llm.get_input_embeddings().num_embeddings
    if rows == known:
        return
    llm.resize_token_embeddings(rows, mean_resizing=False)
    ends: tuple[nn.Module, ...] = (llm.get_input_embeddings(), llm.get_output_embeddings())
    for weight in (end.weight for end in ends):
        assert isinstance(weight, nn.Parameter)
        weight[known:] = weight[:known].float().mean(0).to(weight.dtype)


def _read(kind: Any, source: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:  # transformers, the Hub and json each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"The {what} of {source} cannot be loaded ({reason}); give the folder of a causal language model with "
            "its tokenizer, or its name on the Hub."
        ) from error
