"""Who moves when: expected turns written out by hand."""

import pytest

from recbole_adv.errors import ConfigError
from recbole_adv.game.schedule import Schedule, Turns, schedule_of


def play(schedule, epochs, batches):
    """The movers of each batch, and the turns taken: the trainer's bookkeeping in a few lines."""
    taken = dict.fromkeys(schedule.turns, 0)
    log, count = [], 0
    for epoch in range(epochs):
        for names in schedule.passes(epoch, taken):
            alone = schedule.turns[names[0]].unit == "epoch"
            for _ in range(batches):
                movers = schedule.movers(names, epoch, count, taken)
                log.append("+".join(movers))
                count += not alone
                for name in movers:
                    taken[name] += not alone
            if alone:
                taken[names[0]] += 1
    return log, taken


def test_interval_counts_batches_over_the_whole_run():
    schedule = schedule_of({"max_interval": 3}, ["min", "max"])
    log, taken = play(schedule, epochs=2, batches=4)
    assert log == ["min", "min", "min+max", "min", "min", "min+max", "min", "min"]
    assert taken == {"min": 8, "max": 2}


def test_order_start_stop_and_budget():
    config = {"max_first": True, "max_start_epoch": 1, "max_stop_epoch": 3, "max_budget": 3}
    log, taken = play(schedule_of(config, ["min", "max"]), epochs=4, batches=2)
    assert log == ["min", "min", "max+min", "max+min", "max+min", "min", "min", "min"]
    assert taken["max"] == 3


def test_several_critic_steps_for_each_generator_step():
    schedule = schedule_of({"generator_interval": 3}, ["critic", "generator"])
    assert play(schedule, 1, 6)[0] == ["critic", "critic", "critic+generator"] * 2


def test_epoch_phases_before_and_after():
    config = {"max_unit": "epoch", "max_interval": 2, "max_steps": 1, "max_first": True}
    log, taken = play(schedule_of(config, ["min", "max"]), epochs=4, batches=1)
    assert log == ["max", "min", "min", "max", "min", "min"]
    assert taken["max"] == 2
    late = {**config, "max_first": False, "max_start_epoch": 1}
    log, _ = play(schedule_of(late, ["min", "max"]), epochs=2, batches=1)
    assert log == ["min", "min", "max"]


def test_epoch_phase_of_several_passes_and_one_turn():
    schedule = Schedule(
        {"max": Turns(steps=2, unit="epoch", start_epoch=1, budget=1), "min": Turns()}
    )
    assert [schedule.passes(e, {"max": e > 1, "min": 0}) for e in range(3)] == [
        [("min",)],
        [("max",), ("max",), ("min",)],
        [("min",)],
    ]


def test_batches_that_train_nobody_are_refused():
    with pytest.raises(ConfigError, match="min_interval 2, max_interval 3"):
        schedule_of({"min_interval": 2, "max_interval": 3}, ["min", "max"])


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("critic_interval", 0, "critic_interval must be a whole number >= 1"),
        ("critic_unit", "epochs", "critic_unit must be one of step, epoch"),
        ("critic_data", "new", "critic_data must be one of same, fresh, none"),
    ],
)
def test_keys_of_a_players_own_are_checked(key, value, words):
    with pytest.raises(ConfigError, match=words):
        schedule_of({key: value}, ["critic", "generator"])
