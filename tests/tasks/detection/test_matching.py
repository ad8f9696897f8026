"""Assigning and sampling: rules on hand-made cases and properties."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from piip.tasks.detection.matching import BACKGROUND, IGNORED, Matcher, Sampler

OBJECT = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def shifted(*offsets):
    return torch.tensor([[x, 0.0, x + 10, 10.0] for x in offsets])


def test_thresholds_and_what_lies_between():
    boxes = shifted(0, 2, 4, 9)  # IoU 1, 0.67, 0.43, 0.05
    matched = Matcher(0.6, 0.3, low_quality=False)(boxes, OBJECT)
    assert matched.tolist() == [0, 0, IGNORED, BACKGROUND]


def test_an_object_claims_all_its_best_boxes():
    boxes = shifted(4, -4, 6)
    assert Matcher(0.9, 0.8, 0.3)(boxes, OBJECT).tolist() == [0, 0, BACKGROUND]
    assert Matcher(0.9, 0.8, 0.5)(boxes, OBJECT).tolist() == [BACKGROUND] * 3


def test_of_two_objects_the_later_claims_the_box():
    objects = shifted(-4, 4)
    assert Matcher(0.9, 0.1, 0.3)(shifted(0), objects).tolist() == [1]


def test_without_objects_everything_is_background():
    boxes = shifted(0, 1)
    assert Matcher(0.5, 0.5)(boxes, boxes[:0]).tolist() == [BACKGROUND] * 2
    assert Matcher(0.5, 0.5)(boxes[:0], boxes).tolist() == []


@given(st.lists(st.integers(-2, 5), max_size=200), st.integers(1, 64), st.floats(0, 1))
def test_sample(values, count, fraction):
    matched = torch.tensor(values, dtype=torch.int64)
    positive, negative = Sampler(count, fraction)(matched)
    objects, background = int((matched >= 0).sum()), int((matched == BACKGROUND).sum())
    assert len(positive) == min(objects, int(count * fraction))
    assert len(negative) == min(background, count - len(positive))
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == BACKGROUND).all()
    for chosen in (positive, negative):
        assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_nothing_is_drawn_where_everything_fits():
    state = torch.get_rng_state()
    Sampler(10, 0.5)(torch.tensor([0, 1, BACKGROUND]))
    assert torch.equal(state, torch.get_rng_state())
