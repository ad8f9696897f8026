"""Scores of answers in words: yes or no as POPE counts it, soft accuracy as VQA and TextVQA do.

Nothing here needs a model: answers of any program can be scored.
"""

import re
from collections.abc import Iterable, Sequence

from piip.data.questions import FEWEST_ANSWERS
from piip.errors import DataError

_AGREEING = 3
_NO = frozenset({"no", "not"})
_YES = frozenset({"yes"})

_ARTICLES = frozenset({"a", "an", "the"})
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {name: str(number) for number, name in enumerate(_NAMES)} | {"none": "0"}
_VANISHING = str.maketrans("", "", ",?")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _misspelt(words: Iterable[str]) -> dict[str, str]:
    """Return contractions by what is left of them without one of their apostrophes."""
    return {
        word[:position] + word[position + 1 :]: word
        for word in words
        for position, letter in enumerate(word)
        if letter == "'"
    }


_MENDED = _misspelt(_CONTRACTIONS.split()) | {"somebody'd": "somebodyd"}  # the last as in the official table


def normalize(answer: str) -> str:
    """Return an answer as the evaluation of TextVQA compares it; published LLaVA numbers go by the same rules.

    In this order: lower case; commas and question marks vanish, also in ``1,000``; a possessive becomes a word of
    its own; any other punctuation vanishes if it touches a space somewhere in the answer, and becomes a space if
    not; a period stays only before a digit; number words become digits, articles vanish, and contractions get
    back a missing apostrophe. These are VQA's rules after two steps that TextVQA puts before them: VQA itself
    leaves possessives alone, and a comma between letters becomes a space.
    """
    text = answer.lower().translate(_VANISHING).replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    touching = {mark for mark in _PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    for mark in _PUNCTUATION:
        text = text.replace(mark, "" if mark in touching else " ")
    return re.sub(r"\.(?!\d)", "", text)


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return how far people agree with an answer, between 0 and 1 (VQA, arXiv 1505.00468).

    Each person is left out once, an answer scores a third for each of the others who gave it, 1 at most, and the
    mean over those left out counts: of ten people, 1, 2, 3 or 4 who agree are worth 0.3, 0.6, 0.9 and 1.

    Args:
        answer: What is scored.
        references: What people answered, ten as a rule.

    Raises:
        DataError: There are fewer than `FEWEST_ANSWERS` references.
    """
    if len(references) < FEWEST_ANSWERS:
        raise DataError(
            f"A question has {len(references)} answers of people; soft accuracy needs {FEWEST_ANSWERS} at least "
            "(VQA and TextVQA give ten)."
        )
    given = normalize(answer)
    agree = [normalize(reference) == given for reference in references]
    total = sum(agree)
    return sum(min((total - left_out) / _AGREEING, 1.0) for left_out in agree) / len(agree)


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Return whether an answer, normalised, is that of any person."""
    given = normalize(answer)
    return any(normalize(reference) == given for reference in references)


def vqa_scores(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """Return the mean soft accuracy and the share of exact matches.

    Args:
        pairs: Answer and references of every question.

    Raises:
        DataError: There is no question, or one has too few references.
    """
    _require_questions(pairs)
    soft = sum(soft_accuracy(answer, references) for answer, references in pairs)
    exact = sum(exact_match(answer, references) for answer, references in pairs)
    return {"accuracy": soft / len(pairs), "exact_match": exact / len(pairs), "questions": len(pairs)}


def says_yes(answer: str) -> bool:
    """Return how POPE reads an answer: as no if its first sentence has the word "no" or "not", else as yes.

    The sentence ends at the first period, commas are left out, and words are what stands between spaces. Unlike in
    POPE's own script, capitals do not matter, nor do marks at the end of a word ("No!" is a no).
    """
    return not _NO & _first_words(answer)


def pope_scores(pairs: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Return accuracy, precision, recall and F1 of the answer yes, and how often it was given (arXiv 2305.10355).

    Precision, recall and F1 are 0 where there is nothing to divide by. ``unclear`` is the share of answers with
    neither "yes" nor "no": they count as yes, so that a model which says something else altogether is seen.

    Args:
        pairs: Answer in words, and whether yes is true, of every question.

    Raises:
        DataError: There is no question.
    """
    _require_questions(pairs)
    said = [says_yes(answer) for answer, _ in pairs]
    truth = [label for _, label in pairs]
    hits = sum(a and b for a, b in zip(said, truth, strict=True))
    right = sum(a == b for a, b in zip(said, truth, strict=True))
    unclear = sum(not (_NO | _YES) & _first_words(answer) for answer, _ in pairs)
    return {
        "accuracy": right / len(pairs),
        "precision": _ratio(hits, sum(said)),
        "recall": _ratio(hits, sum(truth)),
        "f1": _ratio(2 * hits, sum(said) + sum(truth)),
        "yes_ratio": sum(said) / len(pairs),
        "unclear": unclear / len(pairs),
        "questions": len(pairs),
    }


def _first_words(answer: str) -> set[str]:
    sentence = answer.lower().partition(".")[0].replace(",", "")
    return {word.rstrip("!?;:\"'") for word in sentence.split()}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _require_questions(pairs: Sequence[object]) -> None:
    if not pairs:
        raise DataError("There is no question to score; give one at least.")
