"""Which epoch's model is kept, when training stops, and how a model is scored."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from time import time
from typing import Any

import torch

from recbole_adv import processes
from recbole_adv.evaluation.evaluation import Evaluation, evaluation_of, score_of, with_prefix
from recbole_adv.host_memory import keeps_memory
from recbole_adv.loader.shares import block_of


class SelectionMixin:
    """Validation, early stopping and evaluation of a trainer.

    Attributes:
        further_valid_data: loaders by name whose metrics stand beside those of the validation.
    """

    further_valid_data: dict[str, Any] = {}

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """What the keys of the evaluation ask for; None where it is RecBole's."""
        return evaluation_of(self.config)

    def _validate(self, valid_data, epoch, verbose, saved, show_progress, callback_fn) -> bool:
        """Validate, keep the model if it is the best so far; returns whether to stop."""
        start = time()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self.valid_result = result
        for technique in self.techniques.all():
            technique.after_validation(epoch, score)
        start_epoch = self.config["selection_start_epoch"]
        # A best model from before the penalty or the adversary set in only stands in for one.
        stand_in = self.best_epoch is not None and self.best_epoch < start_epoch <= epoch
        improved = stand_in or self._improves(score)
        if improved:
            self.best_valid_score, self.cur_step = score, 0
            self.best_valid_result, self.best_epoch = result, epoch
        else:
            self.cur_step += epoch >= start_epoch
        self.report.validated(epoch, time() - start, score, result, verbose)
        if improved and saved:
            self._save_checkpoint(epoch, verbose=verbose)
        if callback_fn:
            callback_fn(epoch, score)
        stop = self.cur_step > self.stopping_step
        if stop and verbose:
            self.logger.info("Finished training, best eval result in epoch %s", self.best_epoch)
        return stop

    def _improves(self, score: float) -> bool:
        """RecBole takes an equal score for better, so that a collapsed model never stops."""
        if score == self.best_valid_score:
            return bool(self.config["tie_is_improvement"])
        if self.valid_metric_bigger:
            return score > self.best_valid_score
        return score < self.best_valid_score

    def prepare_evaluation(self, train_data, valid_data, further_valids, tests) -> None:
        """Say on what is validated and tested, before training; mistakes in the keys show here.

        valid_data: the validation that selects; further_valids: others, by name; tests: loaders.
        """
        self.train_data, self.further_valid_data = train_data, further_valids
        if self.evaluation is not None:
            loaders = [valid_data, *further_valids.values(), *tests]
            self.evaluation.prepare(self, [data for data in loaders if data])

    def _valid_epoch(self, valid_data, show_progress=False):
        """RecBole's method: the validation score, and metrics by name."""
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        for name, data in self.further_valid_data.items():
            result |= with_prefix(name, self.evaluate(data, load_best_model=False) or {})
        return score_of(result, self.valid_metric), result

    @keeps_memory
    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's ``evaluate``: metrics by name, as Python numbers."""
        if not eval_data:
            return None
        if load_best_model:
            self._load_weights(model_file or self.saved_model_file)
            self._weights_loaded = True
        # A checkpoint holds the weights that were validated.
        weights = nullcontext() if self._weights_loaded else self._evaluation_weights()
        with weights, block_of(eval_data):
            if self.evaluation is None and len(eval_data) == 0:  # RecBole would leave here
                result = self.evaluator.evaluate(self.eval_collector.get_data_struct())
            elif self.evaluation is None:
                result = super().evaluate(eval_data, False, show_progress=show_progress)
            else:
                result = self.evaluation(self, eval_data, show_progress)
                self.wandblogger.log_eval_metrics(result, head="eval")
        return processes.from_first({name: float(value) for name, value in result.items()})
