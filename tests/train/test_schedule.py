import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piip.errors import ConfigError
from piip.train.schedule import Schedule, learning_rate
from piip.train.settings import ScheduleConfig


def test_the_released_1x_schedule():
    schedule = ScheduleConfig("step", milestones=(8, 11), warmup_steps=500, warmup_ratio=0.001)

    def rate(step: int) -> float:
        return learning_rate(schedule, 1e-4, step, steps_per_epoch=7330, epochs=12)

    assert rate(0) == pytest.approx(1e-7)
    assert rate(250) == pytest.approx(1e-4 * (0.001 + 0.999 / 2))
    assert rate(500) == 1e-4
    assert rate(8 * 7330 - 1) == 1e-4
    assert rate(8 * 7330) == pytest.approx(1e-5)
    assert rate(11 * 7330) == pytest.approx(1e-6)


def test_the_released_polynomial_of_segmentation():
    schedule = ScheduleConfig("poly", power=1.0, min_lr=0.0, warmup_steps=1500, warmup_ratio=1e-6)
    steps, base = 80_000, 4e-5
    for step in (0, 1, 700, 1499, 1500, 40_000, 79_999):
        regular = base * (1 - step / steps)
        wanted = regular * (1 - (1 - step / 1500) * (1 - 1e-6)) if step < 1500 else regular
        assert learning_rate(schedule, base, step, 1, steps) == pytest.approx(wanted, rel=1e-12)


def test_cosine_by_epoch_and_by_step():
    by_step = ScheduleConfig("cosine", min_lr=1e-5, warmup_steps=0)
    assert learning_rate(by_step, 1e-3, 50, 10, 10) == pytest.approx((1e-3 + 1e-5) / 2)
    by_epoch = ScheduleConfig("cosine", min_lr=1e-5, warmup_steps=0, by_epoch=True)
    wanted = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 0.3))
    assert learning_rate(by_epoch, 1e-3, 39, 10, 10) == pytest.approx(wanted)


@given(
    kind=st.sampled_from(["constant", "step", "cosine", "poly"]),
    step=st.integers(0, 400),
    by_epoch=st.booleans(),
    power=st.floats(0.2, 3),
)
def test_rates_stay_between_the_limits(kind, step, by_epoch, power):
    schedule = ScheduleConfig(kind, (2, 3), power=power, min_lr=1e-6, by_epoch=by_epoch, warmup_steps=0)
    assert 1e-6 <= learning_rate(schedule, 1e-3, step, 100, 4) <= 1e-3


def test_the_scheduler_follows_the_formula_and_resumes():
    def start():
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.AdamW(
            [{"params": [parameters[0]], "lr": 1e-3}, {"params": [parameters[1]], "lr": 1e-4}]
        )
        return optimizer, Schedule(optimizer, settings, 5, 4)

    settings = ScheduleConfig("poly", power=0.9, warmup_steps=4, warmup_ratio=0.1)
    optimizer, schedule = start()
    for step in range(12):
        wanted = [learning_rate(settings, base, step, 5, 4) for base in (1e-3, 1e-4)]
        assert [group["lr"] for group in optimizer.param_groups] == wanted
        optimizer.step()
        schedule.step()
    resumed_optimizer, resumed = start()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for scheduler, own in ((schedule, optimizer), (resumed, resumed_optimizer)):
        own.step()
        scheduler.step()
    assert resumed.get_last_lr() == schedule.get_last_lr()


def test_bad_schedules():
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        ScheduleConfig("cosin")
    with pytest.raises(ConfigError, match="rising epochs"):
        ScheduleConfig("step", milestones=(11, 8))
    with pytest.raises(ConfigError, match="warmup_ratio"):
        ScheduleConfig(warmup_ratio=0)
