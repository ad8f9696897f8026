"""A tiny language model of characters that knows how the words are spelt, but has seen no image."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from benchmarks.reader.words import Vocabulary

QUESTION = "What is written?"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '\\n' if message['role'] == 'user' else eos_token }}{% endfor %}"
)
"""A line for the image, one for the question, one for the answer: the prompt is short, so it costs little."""

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_IGNORED = -100
_LR = 3e-3
_INITIAL_STD = 0.08  # transformers' 0.02 suits models fifty times as wide


def make_language_model(
    folder: Path, vocabulary: Vocabulary, width: int, layers: int, steps: int, batch_size: int = 64
) -> None:
    """Save a Llama that has learnt to spell, with its tokenizer, as any language model of transformers is saved.

    Without images the best answer is any sentence of the vocabulary, each as likely as in training; that is all
    that is taught here, from sentences that the images' training may show too.

    Args:
        folder: Where it goes.
        vocabulary: What is written.
        width: Of its tokens.
        layers: Of the Llama.
        steps: Batches of training.
        batch_size: Sentences of a batch.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(language_config(len(tokenizer), width, layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps, pct_start=0.1)
    random_state = random.Random(0)
    model.train()
    for _ in range(steps):
        sentences = [vocabulary.draw(random_state, held_out=False) for _ in range(batch_size)]
        loss = model(**_batch(tokenizer, sentences)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer with a token for every printable character of ASCII."""
    characters = [*map(chr, range(32, 127)), "\n"]
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def language_config(vocabulary_size: int, width: int, layers: int) -> transformers.LlamaConfig:
    """Return the configuration of a Llama of the tokenizer's vocabulary."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=512,
        initializer_range=_INITIAL_STD,
    )


def _batch(tokenizer: Any, sentences: Sequence[str]) -> dict[str, Tensor]:
    """Return questions with answers, right-padded; the question is not learnt."""
    prompt = tokenizer.encode(f"<s>\n{QUESTION}\n", add_special_tokens=False)
    rows = [prompt + tokenizer.encode(f"{text}</s>", add_special_tokens=False) for text in sentences]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    attended = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = tokens.masked_fill(attended == 0, _IGNORED)
    labels[:, : len(prompt)] = _IGNORED
    return {"input_ids": tokens, "attention_mask": attended, "labels": labels}
