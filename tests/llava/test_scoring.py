"""Scores against values worked out by hand, and what holds for all answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")  # the package around the module needs it, the module does not

from piip.errors import DataError
from piip.llava.scoring import exact_match, normalize, pope_scores, says_yes, soft_accuracy, vqa_scores

ANSWERS = st.text(alphabet="ab 'no.,1!-\nTHE", max_size=12)
TEN = st.lists(ANSWERS, min_size=10, max_size=10)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A dog.", "dog"),
        ("a dog", "dog"),
        ("The  Theory of an Apple", "theory of apple"),
        ("1,000", "1000"),
        ("3.50", "3.50"),
        (".5", ".5"),
        ("5.", "5"),
        ("u.s.a.", "usa"),
        ("No. 5", "no 5"),
        ("don't", "don't"),
        ("dont", "don't"),
        ("DON'T!", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("twas", "'twas"),
        ("yall", "y'all"),
        ("somebody'd", "somebodyd"),
        ("well", "well"),
        ("wed", "wed"),
        ("im", "im"),
        ("dog's", "dog 's"),
        ("two", "2"),
        ("None", "0"),
        ("ten to zero", "10 to 0"),
        ("twenty-one", "twenty 1"),
        ("red-blue", "red blue"),
        ("red - blue", "red blue"),
        ("red- blue-green", "red bluegreen"),
        ("red, blue", "red blue"),
        ("red,blue", "redblue"),
        ("what?", "what"),
        ("(left)", "left"),
        ("a/b", "b"),
        ("50%", "50%"),
        ("10:30", "10:30"),
        ("yes\nit is", "yes it is"),
        ("", ""),
        (" the ", ""),
        ("...", ""),
    ],
)
def test_normalised_answers(answer, expected):
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)]
)
def test_soft_accuracy_by_the_number_who_agree(agreeing, score):
    references = ["A cat."] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert soft_accuracy("cat", references) == pytest.approx(score)


def test_an_empty_answer_scores_where_people_said_nothing():
    assert soft_accuracy("", ["x"] * 10) == 0
    assert soft_accuracy("", ["the"] * 2 + ["x"] * 8) == pytest.approx(0.6)


def test_exact_match_is_with_any_person():
    assert exact_match("Two.", ["three", "2"])
    assert not exact_match("twenty", ["three", "2"])


def test_scores_of_several_questions():
    scores = vqa_scores([("cat", ["cat"] * 10), ("dog", ["dog"] + ["x"] * 9), ("x", ["y"] * 10)])
    assert scores == pytest.approx({"accuracy": 1.3 / 3, "exact_match": 2 / 3, "questions": 3})


@pytest.mark.parametrize("references", [[], ["cat"] * 3])
def test_too_few_answers_of_people_are_refused(references):
    with pytest.raises(DataError, match=f"has {len(references)} answers of people"):
        soft_accuracy("cat", references)


@pytest.mark.parametrize("scores", [vqa_scores, pope_scores])
def test_no_question_is_refused(scores):
    with pytest.raises(DataError, match="no question"):
        scores([])


@given(ANSWERS)
def test_normalising_keeps_no_articles_nor_spaces(answer):
    words = normalize(answer).split(" ")
    assert not {"a", "an", "the"} & set(words)
    assert normalize(answer) == normalize(answer.upper()) == normalize(f" {answer}\n")


@given(ANSWERS, TEN)
def test_soft_accuracy_lies_between_0_and_1(answer, references):
    score = soft_accuracy(answer, references)
    assert 0 <= score <= 1
    assert (score > 0) == exact_match(answer, references)


@given(ANSWERS, st.integers(4, 12))
def test_equal_answers_score_1(answer, count):
    assert soft_accuracy(answer, [answer] * count) == 1


@given(ANSWERS, TEN, st.randoms())
def test_the_order_of_answers_does_not_matter(answer, references, random):
    shuffled = random.sample(references, len(references))
    assert soft_accuracy(answer, shuffled) == pytest.approx(soft_accuracy(answer, references), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is none.", False),
        ("No!", False),
        ("NO", False),
        ("There is not a dog in the image.", False),
        ("Yes. But not a large one.", True),
        ("nothing", True),
        ("yes\nno", False),
        ("", True),
    ],
)
def test_reading_yes_and_no(answer, yes):
    assert says_yes(answer) is yes


def test_pope_scores_by_hand():
    pairs = [("yes", True), ("Yes.", True), ("yes", False), ("No", True), ("no", False), ("maybe", False)]
    expected = {
        "accuracy": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 4 / 6,
        "unclear": 1 / 6, "questions": 6,
    }  # fmt: skip
    assert pope_scores(pairs) == pytest.approx(expected)


def test_nothing_to_divide_by():
    scores = pope_scores([("no", False)])
    assert (scores["accuracy"], scores["precision"], scores["recall"], scores["f1"]) == (1, 0, 0, 0)


@given(st.lists(st.tuples(ANSWERS, st.booleans()), min_size=1, max_size=8))
def test_pope_scores_lie_between_0_and_1(pairs):
    scores = pope_scores(pairs)
    assert scores.pop("questions") == len(pairs)
    assert all(0 <= value <= 1 for value in scores.values())
    assert pope_scores(pairs[::-1]) == pytest.approx(scores | {"questions": len(pairs)})
