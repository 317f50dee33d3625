"""Penalty schedules: values worked by hand, the switch, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_adv.errors import ConfigError
from recbole_adv.game.penalty import KINDS, PenaltySchedule, Progress, rescale


def epoch(value, total=10, step=0):
    return Progress(step=step, epoch=value, total_epochs=total)


def test_constant():
    schedule = PenaltySchedule(weight=3.0, initial=1.0)
    assert [schedule(epoch(t)) for t in (0, 4.5, 10)] == [3, 3, 3]


def test_step_in_epochs_and_in_steps():
    schedule = PenaltySchedule("step", weight=100, initial=1, start=2.5)
    assert [schedule(epoch(t)) for t in (0, 2.25, 2.5, 9)] == [1, 1, 100, 100]
    schedule = PenaltySchedule("step", weight=100, initial=1, start=500, unit="step")
    assert [schedule(Progress(step=s)) for s in (0, 499, 500, 501)] == [1, 1, 100, 100]


def test_linear():
    schedule = PenaltySchedule("linear", weight=10, initial=2, start=1, stop=5)
    assert [schedule(epoch(t)) for t in (0, 1, 2, 3, 5, 9)] == [2, 2, 4, 6, 10, 10]
    to_the_end = PenaltySchedule("linear", weight=10, start=2)
    assert [to_the_end(epoch(t, total=12)) for t in (0, 2, 7, 12)] == [0, 0, 5, 10]
    in_steps = PenaltySchedule("linear", weight=1, start=10, stop=20, unit="step")
    assert in_steps(Progress(step=13)) == pytest.approx(0.3)


def test_dann_rises_from_nothing_to_nearly_all():
    schedule = PenaltySchedule("dann", weight=2.0)
    assert schedule(epoch(0)) == 0
    assert schedule(epoch(5)) == pytest.approx(2 * (2 / (1 + math.exp(-5)) - 1))
    assert schedule(epoch(10)) == pytest.approx(2 * 0.99991, abs=1e-5)
    values = [schedule(epoch(t / 4)) for t in range(41)]
    assert all(a < b for a, b in zip(values, values[1:]))
    # It also falls, and keeps still outside its stretch.
    down = PenaltySchedule("dann", weight=0.0, initial=1.0, start=2, stop=4)
    assert [down(epoch(t)) for t in (0, 2)] == [1, 1]
    assert down(epoch(3)) == pytest.approx(2 - 2 / (1 + math.exp(-5)))
    assert down(epoch(4)) == down(epoch(9)) == pytest.approx(1 - 0.99991, abs=1e-5)


def test_a_ramp_that_starts_after_the_end_never_rises():
    for kind in ("linear", "dann"):
        schedule = PenaltySchedule(kind, weight=5, initial=1, start=10)
        assert [schedule(epoch(t, total=10)) for t in (0, 9.9, 10)] == [1, 1, 1]


def test_schedules_are_pure_functions():
    schedule = PenaltySchedule("linear", weight=10)
    assert schedule(epoch(5)) == 5 and schedule(epoch(1)) == 1 and schedule(epoch(5)) == 5
    assert hash(schedule) == hash(PenaltySchedule("linear", weight=10))


def switches(schedule, steps_by_epoch, even):
    """The steps of a run at which the optimizer is made anew, as (step, epoch)."""
    progress, found = Progress(total_epochs=len(steps_by_epoch)), []
    times = [e + s / n for e, n in enumerate(steps_by_epoch) for s in range(n)]
    for step, time in enumerate(times):
        if step:
            progress.advance(time)
        if even:
            progress = Progress(step, time, len(steps_by_epoch))
        assert (progress.step, progress.epoch) == (step, time)
        if schedule.switches_at(progress):
            found.append((step, time))
    return found


@pytest.mark.parametrize(
    "start, unit, expected",
    [
        (7, "step", [(7, 1.75)]),
        (2, "epoch", [(8, 2.0)]),
        (2.5, "epoch", [(10, 2.5)]),
        (2.6, "epoch", [(11, 2.75)]),
        (0, "epoch", []),
        (0, "step", []),
        (99, "epoch", []),
    ],
)
@pytest.mark.parametrize("even", [False, True])
def test_the_optimizer_is_reset_on_exactly_one_step(start, unit, expected, even):
    schedule = PenaltySchedule("step", 100, 1, start=start, unit=unit, reset_optimizer=True)
    assert switches(schedule, [4] * 5, even) == expected


def test_one_reset_also_where_epochs_have_different_numbers_of_steps():
    schedule = PenaltySchedule("step", 100, 1, start=2, reset_optimizer=True)
    assert switches(schedule, [10, 5, 20, 3], even=False) == [(15, 2.0)]


def test_the_reset_is_at_the_step_whose_weight_is_new():
    schedule = PenaltySchedule("step", 100, 1, start=1.3, reset_optimizer=True)
    ((step, time),) = switches(schedule, [4, 4, 4], even=False)
    assert schedule(epoch(time)) == 100 and schedule(epoch(time - 0.25)) == 1


def test_without_reset_optimizer_there_is_no_switch():
    schedule = PenaltySchedule("step", 100, 1, start=2)
    assert switches(schedule, [4] * 5, even=False) == []
    for kind in set(KINDS) - {"step"}:
        assert switches(PenaltySchedule(kind, 100, 1), [4] * 5, even=False) == []


def test_rescale_divides_only_by_what_is_above_one():
    loss = torch.tensor(6.0, requires_grad=True)
    assert rescale(loss, 3.0).item() == 2
    assert rescale(loss, 1.0) is loss and rescale(loss, 0.1) is loss
    rescale(loss, 3.0).backward()
    assert loss.grad.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"kind": "stpe"}, "kind must be one of constant, step, linear, dann, got 'stpe'; did you"),
        ({"kind": "zzz"}, "got 'zzz'; write constant"),
        ({"unit": "epochs"}, "unit must be one of step, epoch, got 'epochs'; did you mean epoch?"),
        ({"weight": -1.0}, "weight must be a finite number >= 0, got -1.0; write"),
        ({"weight": math.inf}, "weight must be a finite number >= 0, got inf"),
        ({"initial": math.nan}, "initial must be a finite number >= 0, got nan"),
        ({"start": -2}, "start must be a finite number >= 0, got -2"),
        ({"kind": "linear", "start": 3, "stop": 3}, "after its start 3, got 3; write stop: 4"),
        ({"kind": "dann", "unit": "step"}, "in steps needs its end, got stop None; write stop"),
        ({"kind": "step", "stop": 3}, "got stop 3 with kind 'step'; write kind: linear or"),
        ({"kind": "linear", "reset_optimizer": True}, "got kind 'linear'; write kind: step"),
    ],
)
def test_what_makes_no_sense_is_refused(keys, message):
    with pytest.raises(ConfigError) as caught:
        PenaltySchedule(**keys)
    assert message in str(caught.value)
