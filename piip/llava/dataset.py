"""Conversations as a PIIP-LLaVA is trained on them: tokens, labels of the answers, and prepared images.

Shapes: L tokens, N images of S x S pixels.
"""

import warnings
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from piip.data.conversations import ConversationFile
from piip.data.images import ImageFileError, open_picture
from piip.data.sampler import Key
from piip.errors import ConfigError, DataError
from piip.llava.answers import AnswerFinder, Rendered, expand
from piip.llava.images import stack_images
from piip.llava.messages import begun, template_of
from piip.llava.modeling import IGNORED

Item = dict[str, Tensor]

IMAGE_FIELDS = ("pixel_values", "image_sizes")
"""What an item has of its images; sizes only where these keep their aspect ratio."""

_TOKENS_PER_WORD = 1.4  # of English in the vocabularies of Llama and Qwen; only for sorting by length
_PATIENCE = 100  # unusable samples in a row


class Fate(IntEnum):
    """What became of a sample."""

    UNSEEN = 0
    WHOLE = 1
    CUT = 2
    TOO_LONG = 3
    UNREADABLE = 4


class ConversationDataset(Dataset[Item]):
    """Conversations with labels of their answers.

    An item has ``input_ids`` (L) and ``labels`` (L) int64, and ``pixel_values`` (N, 3, S, S) float32 where the
    sample has images; images that keep their aspect ratio come filled up to one size, with their ``image_sizes``
    (N, 2). Labels are `IGNORED` but for the tokens of answers with their ends of sequence.

    A sample longer than ``max_length`` is cut. One whose cut would go through an image or leave no answer, or whose
    image cannot be read, is replaced by the next good one: every run makes the same replacements. For scores it is
    left out instead: its item is empty.

    Args:
        conversations: What is said, and where the images are.
        processor: A `PiipLlavaProcessor` or another one of LLaVA's kind, with a fast tokenizer.
        max_length: Tokens of a sample, those of images included.
        chat_template: Another template than the processor's, such as `PLAIN_TEMPLATE`.
        replace: Whether samples that cannot be used are replaced, not left out.

    Attributes:
        lengths: ``(len(self),)`` estimated tokens of every sample, to group them by.
        groups: ``(len(self),)`` 1 where a sample has images, otherwise 0.
        fates: ``(len(self),)`` uint8 `Fate` of every sample so far, shared with loader processes.

    Raises:
        ConfigError: The tokenizer cannot tell where tokens are in a text, or the template is unfit.
    """

    def __init__(
        self,
        conversations: ConversationFile,
        processor: Any,
        max_length: int = 2048,
        chat_template: str | None = None,
        replace: bool = True,
    ) -> None:
        template = chat_template or template_of(processor)
        if not getattr(processor.tokenizer, "is_fast", False) or not template or max_length < 1:
            raise ConfigError(
                "Conversations need a fast tokenizer (of the library tokenizers), a chat template and a max_length "
                f"above 0; got {type(processor.tokenizer).__name__}, "
                f"{'a' if template else 'no'} template and {max_length}."
            )
        self.conversations = conversations
        self.processor = processor
        self.max_length = max_length
        self.replace = replace
        self._finder = AnswerFinder(template, processor.tokenizer, processor.image_token)
        _, replacements = self._prepare([Image.new("RGB", (8, 8))])
        in_image = replacements[0].count(processor.image_token)
        estimated = conversations.words * _TOKENS_PER_WORD + conversations.image_counts * in_image
        self.lengths: NDArray[np.int64] = np.minimum(estimated, max_length).astype(np.int64)
        self.groups: NDArray[np.int64] = (conversations.image_counts > 0).astype(np.int64)
        self.fates = torch.zeros(len(conversations), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, key: int | Key) -> Item:
        """Return an item; of a key (epoch, index) only the index matters.

        One that cannot be used is the next good one, or empty where nothing is to be replaced.

        Raises:
            DataError: A hundred samples in a row cannot be used.
        """
        first = key[1] if isinstance(key, tuple) else key
        if not 0 <= first < len(self):
            raise IndexError(f"sample {first} of {len(self)}")
        if not self.replace:
            return self._item_or_none(first) or {}
        for index in range(first, first + min(_PATIENCE, len(self))):
            item = self._item_or_none(index % len(self))
            if item is not None:
                return item
        raise DataError(
            f"No sample of {self.conversations.path} from {first} on can be used ({self.losses()}); run "
            "piip check-data --task multimodal on it, or raise max_length."
        )

    def _item_or_none(self, index: int) -> Item | None:
        if self.fates[index] > Fate.CUT:
            return None
        try:
            item, fate = self._read(index)
        except ImageFileError as error:
            item, fate = None, Fate.UNREADABLE
            mend = "replaced by the next good one" if self.replace else "left out"
            warnings.warn(f"{error} Sample {index} is {mend}.", stacklevel=3)
        self.fates[index] = fate
        return item

    def _read(self, index: int) -> tuple[Item | None, Fate]:
        conversation = self.conversations[index]
        pictures = [open_picture(self.conversations.folder / name) for name in conversation.images]
        shown, replacements = self._prepare(pictures)
        token = self.processor.image_token
        tokens, labels = self._tokenize(expand(self._finder.render(conversation), token, replacements))
        item = {"input_ids": tokens, "labels": labels} | shown
        if len(tokens) <= self.max_length:
            return item, Fate.WHOLE
        cut = self._cut(item, [text.count(token) for text in replacements])
        return cut, Fate.CUT if cut else Fate.TOO_LONG

    def _prepare(self, pictures: Sequence[Image.Image]) -> tuple[Item, list[str]]:
        """Return pictures as the model sees them, and what stands for each in the text."""
        if not pictures:
            return {}, []
        prepared = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        texts = [self.processor.replace_image_token(prepared, index) for index in range(len(pictures))]
        return {name: prepared[name] for name in IMAGE_FIELDS if name in prepared}, texts

    def _tokenize(self, conversation: Rendered) -> tuple[Tensor, Tensor]:
        """Return the tokens (L) of a conversation and their labels (L)."""
        tokenizer = self.processor.tokenizer
        encoded = tokenizer(
            conversation.text,
            add_special_tokens=not begun(tokenizer, conversation.text),
            return_offsets_mapping=True,
            verbose=False,
        )
        starts, ends = np.array(encoded["offset_mapping"]).reshape(-1, 2).T
        learnt = np.zeros(len(starts), bool)
        for start, end in conversation.answers:
            learnt |= (ends > start) & (starts < end)
        tokens = torch.tensor(encoded["input_ids"])
        return tokens, torch.where(torch.from_numpy(learnt), tokens, IGNORED)

    def _cut(self, item: Item, counts: Sequence[int]) -> Item | None:
        """Return the beginning of an item, with the images that are whole in it; None where nothing useful is left.

        Args:
            item: Longer than it may be.
            counts: Tokens of every image.
        """
        cut = {name: item[name][: self.max_length] for name in ("input_ids", "labels")}
        seen = int((cut["input_ids"] == self.processor.image_token_id).sum())
        ends = np.cumsum([0, *counts]).tolist()
        if seen not in ends or (cut["labels"] == IGNORED).all():
            return None
        if images := ends.index(seen):
            cut |= {name: item[name][:images] for name in IMAGE_FIELDS if name in item}
        return cut

    def losses(self) -> str:
        """Return how many samples were cut, replaced or left out so far, empty where all were whole."""
        found = torch.bincount(self.fates.long(), minlength=len(Fate)).tolist()
        mended = "replaced" if self.replace else "left out"
        named = {
            Fate.CUT: f"cut to {self.max_length} tokens",
            Fate.TOO_LONG: f"{mended}, as a cut would leave no answer or half an image",
            Fate.UNREADABLE: f"{mended}, as an image cannot be read",
        }
        parts = [f"{found[fate]} {what}" for fate, what in named.items() if found[fate]]
        return f"of {sum(found[1:])} samples seen, {'; '.join(parts)}" if parts else ""

    @property
    def unusable(self) -> int:
        """Samples so far that could not be used: replaced or left out."""
        return int((self.fates > Fate.CUT).sum())

    def warn_of_losses(self) -> None:
        """Warn once of everything that was cut, replaced or left out; for the end of an epoch or a run."""
        if losses := self.losses():
            warnings.warn(f"{self.conversations.path}: {losses}.", stacklevel=2)


class ConversationCollator:
    """Makes a batch of items, padded on the right.

    The batch has ``input_ids``, ``attention_mask`` and ``labels`` (B, L), and the images of all samples in order as
    ``pixel_values`` (N, 3, S, S), absent where no sample has one: `PiipLlavaModel` then sees an empty image while
    it is trained, so that every process of a distributed run does the same. Images of several sizes are filled up
    at the bottom and right, with their ``image_sizes`` (N, 2). Empty items are left out; the batch of nothing else
    is empty.

    Args:
        pad_token_id: What fills short samples; any token will do, as it is neither attended to nor learnt.
    """

    def __init__(self, pad_token_id: int | None) -> None:
        self.pad_token_id = pad_token_id or 0

    def __call__(self, items: Sequence[Item]) -> Item:
        """Return a batch of items."""
        items = [item for item in items if item]
        if not items:
            return {}
        tokens = [item["input_ids"] for item in items]
        shown = [item for item in items if "pixel_values" in item]
        batch = {
            "input_ids": _pad(tokens, self.pad_token_id),
            "attention_mask": _pad([torch.ones_like(part) for part in tokens], 0),
            "labels": _pad([item["labels"] for item in items], IGNORED),
        }
        if shown:
            batch["pixel_values"] = stack_images([image for item in shown for image in item["pixel_values"]])
        if shown and "image_sizes" in shown[0]:
            batch["image_sizes"] = torch.cat([item["image_sizes"] for item in shown])
        return batch


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
