"""How much is drawn, learnt and asked."""

from dataclasses import dataclass

from benchmarks.reader.words import WORDS

CONTENDERS = ("two branches", "one resolution", "thin network")
"""A large network on a small image with a small one on the whole image; the large one alone on an image between the
two; one of a width between the two alone on the whole image. All execute as many multiply-accumulates."""

SIZES = {"large": 26, "middle": 16, "small": 10}
"""Sizes of the font in pixels at which questions are asked, for images of 96 pixels."""


@dataclass(frozen=True)
class Stage:
    """A part of the training; each begins with the model that the one before has left.

    Attributes:
        images: How many are learnt from.
        epochs: Passes over them.
        pairs: Share of sentences of two words; the others are single words.
        ems: Smallest and largest size of the font in pixels. Every ratio of two sizes is as likely anywhere
            between them.
        spread: How far from the centre of the image a sentence may be, 1 = anywhere.
        lr: Learning rate, which falls to 0 in the end.
    """

    images: int
    epochs: int
    pairs: float
    ems: tuple[int, int]
    spread: float
    lr: float


@dataclass(frozen=True)
class Settings:
    """The whole experiment; all contenders share all of it.

    Attributes:
        side: Side of the images in pixels.
        words: What is written.
        stages: The training: large single words first, then everything, then more of it.
        asked: Questions of each size.
        batch_size: Images of a step.
        warmup_steps: Steps until a stage's learning rate is reached.
        width: Of the language model's tokens.
        layers: Of the language model.
        spelling_steps: Batches of sentences, without images, from which the language model learns to spell.
        seeds: One run of each contender for each.
        contenders: Whose runs are made; others are made on request.
    """

    side: int = 96
    words: tuple[str, ...] = WORDS
    stages: tuple[Stage, ...] = (
        Stage(5000, 3, 0.0, (24, 28), 0.2, 2e-3),
        Stage(12000, 2, 0.2, (9, 28), 0.2, 1e-3),
        Stage(80000, 2, 0.33, (9, 28), 0.2, 1e-3),
    )
    asked: int = 300
    batch_size: int = 16
    warmup_steps: int = 50
    width: int = 64
    layers: int = 2
    spelling_steps: int = 300
    seeds: tuple[int, ...] = (0, 1, 2)
    contenders: tuple[str, ...] = CONTENDERS[:2]


WHOLE = Settings()
QUICK = Settings(
    words=WORDS[:4],
    stages=(Stage(16, 1, 0.0, (24, 28), 0.2, 1e-3), Stage(16, 1, 0.5, (9, 28), 0.2, 1e-3)),
    asked=4,
    batch_size=8,
    warmup_steps=1,
    spelling_steps=4,
    seeds=(0,),
)
"""A few steps that show that everything runs; nothing is learnt."""
