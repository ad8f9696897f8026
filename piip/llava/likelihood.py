"""How likely a PIIP-LLaVA finds the answers of conversations, token by token; nothing is generated."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.errors import DataError
from piip.llava.dataset import ConversationCollator, ConversationDataset
from piip.llava.modeling import PiipLlavaForConditionalGeneration


class AnswerCount(NamedTuple):
    """What came of some answers.

    Attributes:
        loss: Sum of the cross entropies of their tokens, in nats.
        right: Tokens that the model found the likeliest.
        tokens: Tokens of the answers.
    """

    loss: float
    right: int
    tokens: int


@torch.inference_mode()
def count_answers(model: PiipLlavaForConditionalGeneration, batch: Mapping[str, Tensor]) -> AnswerCount:
    """Return what a model thinks of the answers of a batch (of `ConversationCollator`), each after true tokens."""
    if not batch:
        return AnswerCount(0.0, 0, 0)
    logits, labels = model.answer_logits(**batch)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return AnswerCount(float(loss), int((logits.argmax(-1) == labels).sum()), len(labels))


def count_conversations(
    model: PiipLlavaForConditionalGeneration,
    dataset: ConversationDataset,
    collate: ConversationCollator,
    batch_size: int = 1,
) -> Iterator[AnswerCount]:
    """Yield what a model thinks of the answers of a data set, batch by batch."""
    for start in range(0, len(dataset), batch_size):
        items = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        batch = {name: value.to(model.device) for name, value in collate(items).items()}
        yield count_answers(model, batch)


def answer_scores(counts: Iterable[AnswerCount]) -> dict[str, float]:
    """Return the mean loss of a token, the share of right tokens, and the number of tokens.

    Raises:
        DataError: There is no token.
    """
    parts: Sequence[AnswerCount] = list(counts)
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        raise DataError(
            "No conversation can be used, so that nothing was measured; run piip check-data --task multimodal on "
            "the file, or raise max_length."
        )
    return {
        "loss": sum(part.loss for part in parts) / tokens,
        "accuracy": sum(part.right for part in parts) / tokens,
        "tokens": tokens,
    }
