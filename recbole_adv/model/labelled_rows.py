"""Labelled rows that stay the same over the epochs: stored labels, or negatives drawn once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_adv.errors import ConfigError, DataError


class Labelled(NamedTuple):
    """What is fitted: R = B (1 + n) rows, n negatives for each of B training rows.

    user, item: [R] int64; label: [R] float; row: [R] int64 in 0..N (1 + n) - 1, the number of
    the labelled row, under which something can be kept for it.
    """

    user: Tensor
    item: Tensor
    label: Tensor
    row: Tensor


class LabelledRows(nn.Module):
    """Where labels come from, for ``static_negatives: n``.

    n >= 1: every training row is a positive and has n negatives, drawn once, uniformly among the
    items with which its user has no training row; n = 0: labels are read from a column, LABEL_FIELD
    or, for ``feedback: explicit``, RATING_FIELD. RecBole's sampling, which draws anew each epoch,
    must be off (``train_neg_sample_args: ~``).

    Labelled row k N + i is the k-th negative of training row i, k = 0 the row itself.

    Buffer: negatives [N, n]. It is in the checkpoint: a resumed run keeps its negatives.

    Raises:
        ConfigError: there are no labels, or two sources of them.
    """

    negatives: Tensor

    def __init__(self, config, dataset, generator: torch.Generator):
        super().__init__()
        self.fields = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], config["INTER_IDX_FIELD"])
        explicit = config["feedback"] == "explicit"
        self.label_field = config["RATING_FIELD" if explicit else "LABEL_FIELD"]
        n_negatives = config["static_negatives"]
        _check_sampling(config["train_neg_sample_args"]["distribution"])
        _check_labels(dataset, self.label_field, n_negatives, explicit)
        user, item, _ = self.fields
        rows = dataset.inter_feat
        negatives = draw_unobserved(
            rows[user], rows[item], dataset.item_num, n_negatives, generator
        )
        self.register_buffer("negatives", negatives)
        self.n_labelled = negatives.shape[0] * (1 + n_negatives)

    def of(self, interaction: Interaction) -> Labelled:
        """The labelled rows of a batch that has the row index."""
        user, item, index = (interaction[field] for field in self.fields)
        n_rows, n = self.negatives.shape
        if n == 0:
            return Labelled(user, item, interaction[self.label_field].float(), index)
        label = torch.zeros(len(user) * (1 + n), device=user.device)
        label[: len(user)] = 1
        items = torch.cat([item, self.negatives[index].t().flatten()])
        tile = torch.arange(1 + n, device=index.device).unsqueeze(1)
        return Labelled(user.repeat(1 + n), items, label, (index + n_rows * tile).flatten())


def draw_unobserved(
    user: Tensor, item: Tensor, n_items: int, n: int, generator: torch.Generator
) -> Tensor:
    """n items for each row, uniformly among 1..n_items-1 without those of the user's rows.

    The r-th unobserved item of a user (r from 0) is 1 + r + #{j: o_j - 1 - j <= r}, o_0 < o_1 < ...
    his observed items, so one uniform r gives it exactly, without a second try.

    user, item: [N] int64, items from 1 on (0 is RecBole's padding).   Returns [N, n] int64.
    """
    distinct = torch.unique(user * n_items + item)  # sorted
    owner = distinct // n_items
    n_observed = torch.bincount(owner, minlength=int(user.max()) + 1)
    n_free = (n_items - 1 - n_observed)[user]
    if n and int(n_free.min()) < 1:
        full = int((n_observed == n_items - 1).sum())
        raise DataError(
            f"static_negatives: {n} draws items that a user has no training row with, but {full} "
            "users have one with every item; filter these users, or write static_negatives: 0"
        )
    first = n_observed.cumsum(0) - n_observed
    j = torch.arange(len(distinct)) - first[owner]
    key = owner * n_items + distinct % n_items - 1 - j
    uniform = torch.rand(len(user), n, generator=generator, dtype=torch.float64)
    # A float64 below 1 times an integer may round up to the integer.
    r = torch.minimum((uniform * n_free.unsqueeze(1)).long(), n_free.unsqueeze(1) - 1)
    below = torch.searchsorted(key, user.unsqueeze(1) * n_items + r, right=True)
    return 1 + r + below - first[user].unsqueeze(1)


def _check_sampling(distribution: str) -> None:
    if distribution != "none":
        raise ConfigError(
            "something is kept for every labelled row, so RecBole may not draw negatives anew, got "
            f"train_neg_sample_args with distribution {distribution!r}; write "
            "train_neg_sample_args: ~ and static_negatives: 1"
        )


def _check_labels(dataset, field: str, n_negatives: int, explicit: bool) -> None:
    there = field in dataset.inter_feat
    labels = dataset.inter_feat[field] if there else torch.ones(1)
    if n_negatives and (explicit or not bool((labels == 1).all())):
        given = "feedback: explicit" if explicit else f"a column {field!r} that is not all 1"
        raise ConfigError(
            "static_negatives takes every training row for a positive, got static_negatives: "
            f"{n_negatives} and {given}; write static_negatives: 0"
        )
    if not n_negatives and not there:
        other = "" if explicit else ", or write threshold: {'rating': 4} or static_negatives: 1"
        raise ConfigError(
            f"static_negatives: 0 takes the labels from the column {field!r}, got rows of "
            f"{', '.join(dataset.inter_feat.columns)}; add it to load_col{other}"
        )
    if not explicit and not bool(((labels >= 0) & (labels <= 1)).all()):
        raise ConfigError(
            f"labels of feedback: implicit must lie in [0, 1], got {labels.min():g} to "
            f"{labels.max():g} in {field!r}; write threshold: {{'rating': 4}}, or "
            "feedback: explicit"
        )
