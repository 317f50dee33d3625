"""When training stops, and which epoch's model is kept."""

import random
from pathlib import Path

import pytest
import torch
from recbole.utils import early_stopping

from recbole_adv import checkpoint


def scripted(run, scores):
    """Let the validations give these scores; the weights tell which epoch was saved."""
    given = iter(scores)
    weight = run.model.user_embedding.weight

    def valid_epoch(valid_data, show_progress=False):
        score = next(given)
        return score, {"recall@10": score}

    def train_epoch(train_data, epoch, show_progress=False):
        weight.data.fill_(float(epoch))
        return 0.0

    run.trainer._valid_epoch, run.trainer._train_epoch = valid_epoch, train_epoch
    return run.fit()


def saved_epoch(trainer):
    """The epoch of the model that is tested, by its weights and by what the file says."""
    state = checkpoint.load(trainer.saved_model_file)
    weights = state["state_dict"]["user_embedding.weight"]
    assert weights.unique().tolist() == [state["epoch"]]
    return state["epoch"]


def test_a_constant_metric_stops_after_the_patience(tiny):
    """Nothing is learnt at learning rate 0: stock RecBole never stops and saves every epoch."""
    frozen = {"learning_rate": 0.0, "epochs": 9, "stopping_step": 2}
    run = tiny("BPR", **frozen)
    trainer = run.fit()
    assert list(trainer.train_loss_dict) == [0, 1, 2, 3]  # the best, and three that are no better
    assert trainer.best_epoch == 0
    assert checkpoint.load(trainer.saved_model_file)["epoch"] == 0
    stock = tiny("BPR", tie_is_improvement=True, **frozen).fit()
    assert len(stock.train_loss_dict) == 9
    assert stock.best_epoch == 8
    assert checkpoint.load(stock.saved_model_file)["epoch"] == 8
    assert stock.best_valid_score == trainer.best_valid_score


@pytest.mark.parametrize("bigger", [True, False])
def test_with_ties_as_improvements_every_decision_is_recboles(bigger, tiny):
    """Against RecBole's own early_stopping, on 20 random courses with ties."""
    run = tiny("BPR", tie_is_improvement=True, stopping_step=2)
    trainer, numbers = run.trainer, random.Random(1)
    trainer.valid_metric_bigger = bigger
    for _ in range(20):
        best, step = (-float("inf") if bigger else float("inf")), 0
        trainer.best_valid_score, trainer.cur_step, trainer.best_epoch = best, 0, None
        for epoch in range(12):
            score = numbers.choice([0.1, 0.2, 0.3, 0.4])
            trainer._valid_epoch = lambda valid_data, show_progress, s=score: (s, {"recall@10": s})
            stop = trainer._validate(run.valid, epoch, False, False, False, None)
            best, step, stock_stop, update = early_stopping(score, best, step, 2, bigger)
            assert (trainer.best_valid_score, trainer.cur_step, stop) == (best, step, stock_stop)
            assert (trainer.best_epoch == epoch) == update
            if stop:
                break


def test_a_smaller_metric_may_be_better(tiny):
    run = tiny("BPR", epochs=5, stopping_step=9)
    run.trainer.valid_metric_bigger, run.trainer.best_valid_score = False, float("inf")
    trainer = scripted(run, [0.5, 0.3, 0.4, 0.3, 0.6])
    assert (trainer.best_epoch, trainer.best_valid_score, saved_epoch(trainer)) == (1, 0.3, 1)


def test_the_first_best_counts_among_equals(tiny):
    trainer = scripted(tiny("BPR", epochs=5, stopping_step=9), [0.1, 0.4, 0.2, 0.4, 0.3])
    assert (trainer.best_epoch, saved_epoch(trainer), trainer.cur_step) == (1, 1, 3)
    assert trainer.best_valid_result == {"recall@10": 0.4}


def test_an_epoch_before_selection_starts_only_stands_in(tiny):
    scores = [0.9, 0.8, 0.1, 0.2, 0.5, 0.3, 0.4, 0.4, 0.6]
    run = tiny("BPR", epochs=9, stopping_step=2, selection_start_epoch=3)
    trainer = scripted(run, scores)
    # From epoch 3 on: 0.2, then 0.5, then three that are no better.
    assert list(trainer.train_loss_dict) == list(range(8))
    assert (trainer.best_epoch, trainer.best_valid_score, saved_epoch(trainer)) == (4, 0.5, 4)


def test_patience_does_not_run_before_selection_starts(tiny):
    run = tiny("BPR", epochs=8, stopping_step=1, selection_start_epoch=6)
    trainer = scripted(run, [0.9] * 6 + [0.1, 0.05])
    assert len(trainer.train_loss_dict) == 8
    assert (trainer.best_epoch, saved_epoch(trainer)) == (6, 6)


def test_a_run_that_ends_before_selection_starts_has_a_model(tiny):
    run = tiny("BPR", epochs=3, selection_start_epoch=5)
    trainer = scripted(run, [0.2, 0.4, 0.3])
    assert (trainer.best_epoch, saved_epoch(trainer)) == (1, 1)
    assert trainer.evaluate(run.test)["recall@10"] >= 0
    assert torch.equal(run.model.user_embedding.weight.unique(), torch.ones(1))


def test_validation_of_every_second_epoch(tiny):
    run = tiny("BPR", epochs=7, eval_step=2, stopping_step=9, selection_start_epoch=2)
    trainer = scripted(run, [0.5, 0.1, 0.3])  # after epochs 1, 3 and 5
    assert (trainer.best_epoch, saved_epoch(trainer)) == (5, 5)


def test_without_validation_the_last_epoch_is_kept(tiny):
    trainer = scripted(tiny("BPR", epochs=3, eval_step=0), [])
    assert saved_epoch(trainer) == 2
    assert Path(trainer.last_file).is_file()


def test_the_callback_sees_every_validation(tiny):
    run, seen = tiny("BPR", epochs=3, stopping_step=9), []
    run.fit(callback_fn=lambda epoch, score: seen.append((epoch, score)), saved=False)
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert max(score for _, score in seen) == run.trainer.best_valid_score
