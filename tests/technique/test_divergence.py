"""The detector by hand and on simulated losses; what the watch makes of several parts."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from recbole_adv.technique.divergence import DivergenceDetector, score_collapsed
from recbole_adv.technique.loss_watch import LossWatch
from recbole_adv.trainer.turn import Outcome

STEPS, ONSET, SEEDS = 3000, 1500, 40


# --- by hand: 30 losses of 1 make m = 1, MAD = 0, s = 0.02; the band ends at 1.16, its half at 1.08


def warm(**arguments):
    detector = DivergenceDetector(**arguments)
    assert [detector.observe(1.0) for _ in range(30)] == [None] * 30
    return detector


def test_band_by_hand():
    assert warm().limits() == pytest.approx((1.08, 1.16))
    detector = DivergenceDetector(min_losses=5, band=2.0)
    for loss in (5.0, 1.0, 2.0, 4.0, 3.0):  # m = 3, deviations 2 2 1 1 0, MAD = 1
        detector.observe(loss)
    assert detector.limits() == pytest.approx((3 + 1.4826, 3 + 2 * 1.4826))
    assert detector.limits(whole=-100.0) == pytest.approx((5.0, 7.0))  # 0.02 * 100 = 2 is more


def test_window_forgets():
    detector = DivergenceDetector(window=4, min_losses=2)
    for loss in (9.0, 9.0, 1.0, 1.0, 1.0, 1.0):
        detector.observe(loss)
    assert detector.level == 1.0 and detector.limits() == pytest.approx((1.08, 1.16))


def test_a_smaller_window_is_reached_when_a_run_goes_on_with_it():
    large = DivergenceDetector(window=6, min_losses=2)
    for loss in (9.0, 9.0, 9.0, 9.0, 9.0, 9.0):
        large.observe(loss)
    small = DivergenceDetector(window=4, min_losses=2)
    small.load_state_dict(large.state_dict())
    for loss in (1.0, 1.0, 1.0, 1.0):
        small.observe(loss)
    assert len(small.state_dict()["accepted"]) == 4 and small.level == 1.0


def test_outlier_by_hand():
    detector = warm()
    assert detector.observe(1.15) is None
    assert detector.observe(1.17) == "suspect" and detector.suspicious
    assert detector.observe(5.0) is None  # two above
    # The median of the ten newest is 1 with the eighth loss of 1.
    assert [detector.observe(1.0) for _ in range(8)] == [None] * 7 + ["outlier"]
    assert not detector.suspicious


def test_micro_by_hand():
    detector = warm()
    assert [detector.observe(5.0) for _ in range(3)] == ["suspect", None, None]
    assert [detector.observe(1.0) for _ in range(7)] == [None] * 6 + ["micro"]


def test_nothing_is_accepted_under_suspicion():
    detector = warm()
    for _ in range(40):
        detector.observe(2.0)
    assert detector.limits() == pytest.approx((1.08, 1.16))


def test_full_by_hand():
    detector = warm()
    events = [detector.observe(1.2) for _ in range(51)]
    assert events == ["suspect", *[None] * 49, "full"]
    assert detector.limits() == (math.inf, math.inf)  # it starts anew


def test_drift_into_the_upper_half_is_no_divergence():
    detector = warm()
    events = [detector.observe(loss) for loss in [1.17, *[1.12] * 50]]
    assert events == ["suspect", *[None] * 49, "outlier"]
    assert [detector.observe(1.12) for _ in range(100)] == [None] * 100
    assert detector.level == 1.12


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_full_at_once(loss):
    assert DivergenceDetector().observe(loss) == "full"


def test_before_enough_losses_anything_goes():
    detector = DivergenceDetector()
    assert [detector.observe(10.0**k) for k in range(29)] == [None] * 29


def test_a_term_that_is_switched_off_may_be_switched_on():
    detector = DivergenceDetector()
    assert [detector.observe(x) for x in [0.0] * 40 + [3.0] * 100] == [None] * 140


def test_negative_losses_have_a_band_above():
    detector = DivergenceDetector()
    for _ in range(30):
        detector.observe(-1.0)
    assert detector.limits() == pytest.approx((-0.92, -0.84))


# --- simulated: a loss that falls from 0.69 to 0.25, with heavy-tailed noise (Student t, 3 degrees)


def level():
    return 0.25 + 0.44 * np.exp(-np.arange(STEPS) / 400)


def clean(random, noise=None):
    noise = random.standard_t(3, STEPS) if noise is None else noise
    return level() * (1 + 0.02 * noise)


def spike(random):
    losses = clean(random)
    losses[ONSET : ONSET + 20] = 2.5 * level()[ONSET : ONSET + 20]
    return losses


def blow_up(random):
    losses = clean(random)
    losses[ONSET:] *= 1.2 ** np.arange(1, STEPS - ONSET + 1)
    return losses


def dead(random):
    losses = clean(random)
    losses[ONSET:] = math.log(2) * (1 + 0.001 * random.standard_normal(STEPS - ONSET))
    return losses


def not_a_number(random):
    losses = clean(random)
    losses[ONSET:] = np.nan
    return losses


def drift(random):
    """Windows of 300 steps, each up to 6 % easier or harder than the level."""
    return clean(random, random.standard_normal(STEPS)) * (
        1 + np.repeat(random.uniform(-0.06, 0.06, STEPS // 300), 300)
    )


def events_of(series, seed):
    """The events by kind, and the steps of full divergences, up to the first of these."""
    detector, found = DivergenceDetector(), []
    for step, loss in enumerate(series(np.random.default_rng(seed)).tolist()):
        event = detector.observe(loss)
        if event in ("micro", "full"):
            found.append((step, event))
        if event == "full":
            break
    return found


@pytest.mark.parametrize("series", [clean, drift])
def test_no_false_alarm(series):
    assert [events_of(series, seed) for seed in range(SEEDS)] == [[]] * SEEDS


def test_a_spike_of_20_steps_is_one_micro_divergence():
    for seed in range(SEEDS):
        ((step, event),) = events_of(spike, seed)
        assert event == "micro" and ONSET + 20 < step <= ONSET + 30


@pytest.mark.parametrize("series, latest", [(blow_up, 53), (dead, 53), (not_a_number, 0)])
def test_a_full_divergence_is_seen_after_its_onset(series, latest):
    for seed in range(SEEDS):
        ((step, event),) = events_of(series, seed)
        assert event == "full" and ONSET <= step <= ONSET + latest


def test_state_goes_on_in_the_midst_of_a_suspicion():
    losses = spike(np.random.default_rng(0)).tolist()
    one, other = DivergenceDetector(), DivergenceDetector()
    for loss in losses[: ONSET + 5]:
        one.observe(loss)
    other.load_state_dict(one.state_dict())
    assert one.suspicious and other.suspicious
    rest = losses[ONSET + 5 :]
    assert [one.observe(loss) for loss in rest] == [other.observe(loss) for loss in rest]
    assert one.state_dict() == other.state_dict()


# --- the watch


def watch_of(*moves, **arguments):
    """What a watch says of moves (player, parts), read together."""
    settings = {"patience": 50, **arguments}
    watch = LossWatch("min", settings)
    for player, parts in moves:
        watch.add(player, Outcome(tuple(torch.tensor(float(part)) for part in parts)), False)
    return watch, watch.read()


def test_one_dead_part_does_not_hide_in_the_sum():
    """A third of the loss rises by a half: 1/6 of the sum, within a band of 8 times 3 %."""
    quiet, dead_part = [("min", (1.0, 1.0, 1.0))] * 40, [("min", (1.0, 1.6, 1.0))] * 60
    _, events = watch_of(*quiet, *dead_part, min_deviation=0.03)
    assert events == []
    _, events = watch_of(*quiet, *[("min", (1.0, 2.0, 1.0))] * 60, min_deviation=0.03)
    assert [event for event, _ in events] == ["suspect", "suspect", "full"]
    assert events[-1][1] == (
        "part 2 of the loss of player 'min' left its band at step 41 and was 2 at step 91"
    )


def test_all_parts_together_leave_the_band_of_the_sum():
    """Each by 20 %: less than 8 * 2 % of the sum, which is 48 % of a part."""
    _, events = watch_of(*[("min", (1, 1, 1))] * 40, *[("min", (1.2, 1.2, 1.2))] * 60)
    assert {sentence.partition(" of player")[0] for _, sentence in events} == {"the loss"}
    assert [event for event, _ in events] == ["suspect", "full"]


def test_a_small_penalty_may_grow_tenfold():
    _, events = watch_of(*[("min", (0.69, 1e-5))] * 40, *[("min", (0.69, 1e-4))] * 100)
    assert events == []


def test_others_are_only_looked_at_for_numbers():
    watch, events = watch_of(*[("max", (10.0**k,)) for k in range(38)], ("min", (1.0,)))
    assert events == [] and watch.steps == 1
    _, events = watch_of(("min", (1.0,)), ("max", (math.nan,)), ("min", (1.0,)))
    assert events == [("full", "the loss of player 'max' was nan at step 1")]


def test_the_part_that_is_nan_is_named():
    _, events = watch_of(("min", (1.0, math.inf)))
    assert events == [("full", "part 2 of the loss of player 'min' was inf at step 1")]


def test_losses_on_triples_have_a_band_of_their_own():
    watch = LossWatch("min", {"patience": 50})
    for step in range(200):
        triples = step // 40 % 2 == 1
        watch.add("min", Outcome((torch.tensor(50.0 if triples else 0.5),)), triples)
    assert watch.read() == []


# --- the score


@pytest.mark.parametrize(
    "score, best, bigger, chance, collapsed",
    [
        (0.05, 0.3, True, 0.0, True),
        (0.07, 0.3, True, 0.0, False),
        (0.55, 0.8, True, 0.5, True),  # a sixth of what is above chance
        (0.57, 0.8, True, 0.5, False),
        (0.3, 0.45, True, 0.5, False),  # the best is no better than chance
        (6.0, 1.0, False, 0.0, True),
        (4.0, 1.0, False, 0.0, False),
        (math.nan, math.nan, True, 0.0, True),
        (0.0, math.nan, True, 0.0, False),
    ],
)
def test_score_collapse_by_hand(score, best, bigger, chance, collapsed):
    assert score_collapsed(score, best, 0.2, bigger, chance) is collapsed


def test_simulated_noise_has_outliers():
    """The clean series would show a detector that takes them for more."""
    events = Counter()
    for seed in range(SEEDS):
        detector = DivergenceDetector()
        events.update(filter(None, map(detector.observe, clean(np.random.default_rng(seed)))))
    assert events["outlier"] > 50 and set(events) == {"suspect", "outlier"}
