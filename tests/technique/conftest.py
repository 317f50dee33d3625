"""A model with sparse gradients, which no model of RecBole's has, and attacked batches."""

from __future__ import annotations

import pytest
import torch
from recbole.model.general_recommender import BPR
from recbole.utils import KGDataLoaderState

from recbole_adv.model_state import random_state, replayed
from recbole_adv.objective.parts import total


class SparseBPR(BPR):
    """BPR whose tables have sparse gradients."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for table in (self.user_embedding, self.item_embedding):
            table.sparse = True


@pytest.fixture
def sparse_bpr():
    """The class."""
    return SparseBPR


class AttackedRun:
    """A tiny run with embedding_attack, before its first step.

    ``gradients(batch)`` fills the gradients as a step does, without stepping; ``seen`` then holds the
    attacked tables as each forward pass found them of which gradients were taken.
    """

    def __init__(self, run, epoch=None, double=False, player="min"):
        self.run, self.trainer, self.model = run, run.trainer, run.model
        if double:
            self.model.double()
        if hasattr(run.train, "set_mode"):
            run.train.set_mode(KGDataLoaderState.RSKG)
        self.batch = run.batch()
        self.attack = self.trainer.techniques[player]["embedding_attack"]
        self.model.train()
        for technique in self.trainer.techniques.all():
            technique.before_epoch(self.attack.start_epoch if epoch is None else epoch)
        self.loss = self.trainer.players[0].loss
        self.turn = self.trainer._turns(self._spied)["min"]
        self.seen, self.losses, self.numbers = [], [], random_state()

    def _spied(self, batch):
        loss = self.loss(batch)
        first = loss[0] if isinstance(loss, tuple) else loss
        if first.requires_grad:
            found = self.tables(), total(loss).item()
            first.register_hook(lambda _: self._note(*found))
        return loss

    def _note(self, tables, loss):
        self.seen.append(tables)
        self.losses.append(loss)

    def tables(self):
        """A copy of the attacked tables, by name."""
        return {t.name: t.parameter.detach().clone() for t in self.attack.tables}

    def weights(self):
        """A copy of all weights and buffers."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def gradients(self, batch=None):
        """Loss and gradients of one step on a batch, by name."""
        batch = self.batch if batch is None else batch
        self.audited(batch)
        loss = self.trainer.loop.engine.gradients.of(self.turn, batch)
        return loss, {
            n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None
        }

    def audited(self, batch):
        """Let the first batch's audit be over, so that ``seen`` holds the passes of a step."""
        self.turn.forward = self._spied
        place = self.attack._place(self.turn, batch)
        self.turn.forward = None
        self.seen.clear()
        self.losses.clear()
        return place

    def puts(self, batch=None):
        """One step: its perturbations pass by pass, in the tensors of their place; its gradients."""
        place, put = self.audited(self.batch if batch is None else batch), []
        at = place.at

        def noted(moves, radii=()):
            if moves is not None:
                put.append([radius * move for radius, move in zip(radii, moves)])
            return at(moves, radii)

        place.at = noted
        try:
            return put, self.gradients(batch)[1]
        finally:
            del place.at

    def deltas(self, number=-1):
        """What was added to each table in a forward pass (the last one)."""
        now = self.tables()
        return {name: self.seen[number][name] - now[name] for name in now}

    def again(self, function):
        """Call it with the random numbers of the first step; it leaves no trace."""
        with replayed(self.model, self.numbers):
            return function()

    def plain(self, batch=None, loss=None):
        """Gradients of the loss itself, by autograd, by name."""
        batch = self.batch if batch is None else batch
        names, tensors = zip(*((n, p) for n, p in self.model.named_parameters() if p.requires_grad))

        def gradient():
            value = total((loss or self.loss)(batch))
            return torch.autograd.grad(value, tensors, allow_unused=True)

        return {n: g for n, g in zip(names, self.again(gradient)) if g is not None}


@pytest.fixture
def attacked(tiny):
    """``attacked(model, **settings)``; keys of embedding_attack without their prefix in ``attack``."""

    def make(model, attack=None, epoch=None, double=False, **settings):
        keys = {f"embedding_attack_{key}": value for key, value in (attack or {}).items()}
        run = tiny(model, techniques=["embedding_attack"], **{"eval_step": 0, **keys, **settings})
        return AttackedRun(run, epoch, double)

    return make
