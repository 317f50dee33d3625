"""How often target items stand in the lists of real users: T-HR and T-NDCG.

With E_t the real users who have item t in no part of the data, and r_ut the place of t among the items
that u is ranked (not those of training and validation; a sequential model hides nothing, as in RecBole):

    T-HR@k   = mean over t of mean over u in E_t of [r_ut <= k]
    T-NDCG@k = mean over t of mean over u in E_t of [r_ut <= k] / log2(r_ut + 1)

Fake users and owners do not count. Items of equal scores share the mean of their places. The shift of
predictions is the mean over t and E_t of the score of (u, t) minus that of a model of clean data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_adv.evaluation.ranking import Scorer
from recbole_adv.model_state import clear_caches
from recbole_adv.robustness.fake_users import pairs_in

_SCORES = 2**22  # held at once


@dataclass(frozen=True)
class Promotion:
    """T-HR, T-NDCG and the mean place; of users and targets [u, t] the scores, and who is in E_t."""

    figures: dict[str, float]
    score: Tensor
    counts: Tensor

    def shift_from(self, clean: Promotion) -> float:
        """The mean change of the scores; both are of the same users and targets."""
        kept = self.counts & clean.counts
        change = torch.where(kept, self.score - clean.score, 0.0).sum(0)
        some = kept.any(dim=0)
        return (change[some] / kept.sum(0)[some]).mean().item()


def places(scores: Tensor, targets: Tensor) -> Tensor:
    """The place of each target by its score, 1 the best; [B, t] float.   scores: [B, I]."""
    own = scores[:, targets]
    above = torch.stack([(scores > s.unsqueeze(1)).sum(1) for s in own.T], dim=1)
    equal = torch.stack([(scores == s.unsqueeze(1)).sum(1) for s in own.T], dim=1)
    return above + (equal + 1) / 2


def target_metrics(place: Tensor, counts: Tensor, topk: Sequence[int]) -> dict[str, float]:
    """T-HR@k, T-NDCG@k and the mean place.

    place: [u, t]; counts: [u, t] bool, whether u is one of E_t. A target that everyone has is left out.
    """
    some = counts.any(dim=0)
    place, counts = place[:, some].double(), counts[:, some].double()
    n_users = counts.sum(0)

    def mean(value: Tensor) -> float:
        return ((value * counts).sum(0) / n_users).mean().item()

    figures: dict[str, float] = {}
    for k in topk:
        hit = (place <= k).double()
        figures[f"t-hr@{k}"] = mean(hit)
        figures[f"t-ndcg@{k}"] = mean(hit / torch.log2(place + 1))
    return figures | {"t-place": mean(place)}


@torch.no_grad()
def promotion(run, targets: np.ndarray, n_real: int) -> Promotion:
    """The targets in the lists of a trained run's real users, those below ``n_real``."""
    model, data = run.trainer.model, run.data
    model.eval()
    clear_caches(model)
    user, rows, loader = _rows(run, n_real)
    scorer = Scorer(model, run.trainer.device, loader, run.trainer.test_batch_size)
    hidden = None
    if not loader.is_sequential:
        seen = [pairs_in(data.parts[name]) for name in ("train", data.valid_name)]
        hidden = _by_row(user, seen)
    wanted = torch.from_numpy(targets).to(run.trainer.device)
    found, own = [], []
    for chunk in torch.arange(len(rows)).split(max(_SCORES // scorer.n_items, 1)):
        scores = scorer.full(rows[chunk])
        scores[:, 0] = -torch.inf
        if hidden is not None:
            row, item = (part.to(scores.device) for part in hidden(chunk))
            scores[row, item] = -torch.inf
        found.append(places(scores, wanted).cpu())
        own.append(scores[:, wanted].double().cpu())
    clear_caches(model)
    counts = torch.from_numpy(~_owned(data.parts, user, targets))
    figures = target_metrics(torch.cat(found), counts, run.trainer.config["topk"])
    return Promotion(figures, torch.cat(own), counts)


def _rows(run, n_real: int) -> tuple[np.ndarray, Tensor, Any]:
    """Users, the rows of a loader that say what they are ranked by, and that loader."""
    test = run.test_data
    train = run.data.parts["train"]
    if isinstance(train, SequentialDataset):
        user = test._dataset.inter_feat[train.uid_field].numpy()
        length = test._dataset.inter_feat[train.item_list_length_field].numpy()
        order = np.lexsort((np.arange(len(user)), length, user))
        last = order[np.r_[np.flatnonzero(np.diff(user[order])), len(order) - 1]]
        return user[last], torch.from_numpy(last), test
    user = np.arange(1, n_real)
    interaction = train.join(Interaction({train.uid_field: torch.from_numpy(user)}))
    loader = SimpleNamespace(_dataset=train, is_sequential=False, user_df=interaction)
    return user, torch.arange(len(user)), loader


def _by_row(user: np.ndarray, seen):
    """Rows and items to hide, of some rows, counted from the first."""
    pairs = np.concatenate([np.stack(each) for each in seen], axis=1)
    pairs = pairs[:, np.argsort(pairs[0], kind="stable")]
    start = np.searchsorted(pairs[0], user)
    stop = np.searchsorted(pairs[0], user, side="right")

    def hidden(chunk: Tensor) -> tuple[Tensor, Tensor]:
        low, high = start[chunk.numpy()], stop[chunk.numpy()]
        row = np.repeat(np.arange(len(low)), high - low)
        item = np.concatenate([pairs[1, a:b] for a, b in zip(low, high)]) if len(low) else row
        return torch.from_numpy(row), torch.from_numpy(item.astype(np.int64))

    return hidden


def _owned(parts: dict, user: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[u, t] bool: whether a user has a target in any part."""
    found = np.zeros((len(user), len(targets)), dtype=bool)
    for part in parts.values():
        of, item = pairs_in(part)
        kept = np.isin(item, targets)
        of, item = of[kept], item[kept]
        place = np.searchsorted(user, of).clip(max=len(user) - 1)
        there = user[place] == of
        found[place[there], np.searchsorted(targets, item[there])] = True
    return found
