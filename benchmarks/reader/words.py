"""What is written: short words, sentences of them, and which sentences are kept for the questions."""

import random
import zlib
from dataclasses import dataclass

_LIST = """
apple bird blue book bread cat coin desk dog fish flag gold
horse jam key lamp milk park queen rain ship sun tree yard
"""
WORDS = tuple(_LIST.split())
"""Twenty-four words of three to five letters, none of which the normalisation of TextVQA changes or drops."""
HELD_OUT = 5
"""One in so many sentences of two or more words is kept for the questions."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a run.

    Attributes:
        words: All words.
        shortest: Words of the shortest sentence.
        longest: Words of the longest sentence.
    """

    words: tuple[str, ...] = WORDS
    shortest: int = 1
    longest: int = 2

    def draw(self, random_state: random.Random, held_out: bool) -> str:
        """Return a sentence for training or, with ``held_out``, one of those that are never trained on.

        A single word can be in both: it is its letters that are to be read. Where lengths differ, one is drawn
        with every attempt, so that short sentences are a little more frequent.
        """
        while True:
            count = random_state.randint(self.shortest, self.longest)
            sentence = " ".join(random_state.choices(self.words, k=count))
            if count == 1 or is_held_out(sentence) == held_out:
                return sentence


def is_held_out(sentence: str) -> bool:
    """Return whether a sentence of several words is kept for the questions, the same in every run."""
    return zlib.crc32(sentence.encode()) % HELD_OUT == 0
