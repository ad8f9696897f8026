"""A tiny PIIP-LLaVA: two ViTs, two layers of Llama, and a tokenizer of characters."""

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from piip.config import MergingConfig, PIIPConfig
from piip.llava import PiipLlavaConfig, PiipLlavaForConditionalGeneration, PiipLlavaProcessor
from tests.helpers import TINY_INTERACTION, tiny_branch

SIDE = 64
WORDY = 4
"""Seed of a model that puts spaces into its answers: streams hand over words."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")


def tokenizer():
    letters = {chr(code): code - 32 + len(SPECIAL) for code in range(32, 127)} | {"\n": 100}
    vocabulary = {name: number for number, name in enumerate(SPECIAL)} | letters
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def network_config():
    branches = (tiny_branch(64, 32), tiny_branch(32, SIDE))
    return PIIPConfig(branches, TINY_INTERACTION, MergingConfig("none", pyramid_levels=()))


def text_config():
    return transformers.LlamaConfig(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=1024,
    )  # fmt: skip


def config(**options):
    return PiipLlavaConfig.of(network_config(), text_config(), SPECIAL.index("<image>"), **options)


def model(seed=0, **options):
    torch.manual_seed(seed)
    return PiipLlavaForConditionalGeneration(config(**options)).eval()


def processor(**options):
    return PiipLlavaProcessor.of(config(**options), tokenizer())


def save(folder, seed=0):
    """Save model and processor to a folder and return it."""
    model(seed).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
