"""The profiles of fake users, and how they join the training data.

A profile has m different items, the targets among them, m being what a real user has on average:

* ``random``: the others are any items;
* ``bandwagon``: a share of the others are the most popular items, the rest any;
* ``pga``: the others are those whose addition promotes the targets most (:mod:`pga`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction, cat_interactions

from recbole_adv.data.leak_check import known_pairs
from recbole_adv.errors import ConfigError, DataError
from recbole_adv.robustness.pga import promoting_profiles

BOTTOM = 0.2
"""Targets are drawn from this share of the items, the least popular."""


def pairs_in(part) -> tuple[np.ndarray, np.ndarray]:
    """Users and items [P] of a part, each pair once; sequences with the items they start with."""
    user, item = np.divmod(known_pairs(part), part.item_num)
    return user, item


def popularity(part) -> np.ndarray:
    """[I] how many users have an item."""
    return np.bincount(pairs_in(part)[1], minlength=part.item_num)


def draw_targets(count: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n different items out of the least popular.   count: [I], the padding item first."""
    order = np.argsort(count[1:], kind="stable") + 1
    bottom = order[: max(math.ceil(BOTTOM * len(order)), n)]
    if len(bottom) < n:
        raise ConfigError(
            f"--n_targets must be at most the number of items, {len(order)}, got {n}; write fewer"
        )
    return np.sort(np.random.default_rng([seed, 1]).choice(bottom, n, replace=False))


def profile_size(part, n_targets: int, wanted: int | None) -> int:
    """m: what was wanted, or the mean number of items of a real user; checked."""
    user, _ = pairs_in(part)
    size = wanted or round(len(user) / len(np.unique(user)))
    if not n_targets <= size < part.item_num:
        raise ConfigError(
            f"a fake profile must hold the {n_targets} targets and at most all {part.item_num - 1} "
            f"items, got {size} items; write another --profile_size, or fewer targets"
        )
    return size


def profiles_of(
    attack: str,
    part,
    targets: Sequence[int] | np.ndarray,
    n_fake: int,
    size: int,
    seed: int,
    popular_share: float,
) -> np.ndarray:
    """Items [n_fake, size] of fake users, the targets first.

    part: the training data of the real users; popular_share: of the fillers, for ``bandwagon``.
    """
    rng, count = np.random.default_rng([seed, 2]), popularity(part)
    n_fillers = size - len(targets)
    others = np.setdiff1d(np.arange(1, part.item_num), targets)
    chosen = np.empty((n_fake, 0), dtype=np.int64)
    if attack == "bandwagon":
        ranked = others[np.argsort(-count[others], kind="stable")]
        top = ranked[: math.ceil(popular_share * n_fillers)]
        chosen = np.tile(top, (n_fake, 1))
        others = np.setdiff1d(others, top)
        n_fillers -= len(top)
    rows = [rng.choice(others, n_fillers, replace=False) for _ in range(n_fake)]
    drawn = np.array(rows, dtype=np.int64).reshape(n_fake, n_fillers)
    start = np.hstack([np.tile(np.asarray(targets), (n_fake, 1)), chosen, drawn])
    if attack == "pga":
        return promoting_profiles(pairs_in(part), start, len(targets), part.item_num, seed)
    return start


def add_fake_users(dataset, parts: dict, profiles: np.ndarray, seed: int) -> None:
    """Give a split dataset fake users, numbered after the real ones, in the training part alone.

    The columns of an interaction besides user, item and time are those of some real one, rating and
    label the highest there are; the order of a profile is the seed's, and so are its times.

    dataset: RecBole's; parts: of it, by name, which share its tokens.
    """
    train, rng = parts["train"], np.random.default_rng([seed, 3])
    n_fake, size = profiles.shape
    first = dataset.user_num
    rows = _raw_rows(train, rng.integers(len(train.inter_feat), size=n_fake * size))
    order = np.argsort(rng.random(profiles.shape), axis=1)
    item = np.take_along_axis(profiles, order, axis=1)
    uid, iid, time = train.uid_field, train.iid_field, train.time_field
    user = np.repeat(np.arange(first, first + n_fake), size)
    rows[uid] = torch.from_numpy(user).to(rows[uid].dtype)
    rows[iid] = torch.from_numpy(item.reshape(-1)).to(rows[iid].dtype)
    for key in ("RATING_FIELD", "LABEL_FIELD"):
        field = dataset.config[key]
        if field in rows:
            rows[field] = torch.full_like(rows[field], train.inter_feat[field].max())
    if time in rows:
        rows[time] = rows[time].view(n_fake, size, -1).sort(dim=1).values.view(rows[time].shape)
    _add_tokens(dataset, uid, n_fake)
    _add_features(dataset, parts, rng.integers(1, first, size=n_fake), first)
    fake = train.copy(Interaction(rows))
    if isinstance(train, SequentialDataset):
        type(train).data_augmentation(fake)
    real = train.inter_feat
    real = real.plain() if hasattr(real, "plain") else Interaction(dict(real.interaction))
    parts["train"] = train.copy(cat_interactions([real, fake.inter_feat]))


def _raw_rows(train, index: np.ndarray) -> dict[str, torch.Tensor]:
    """Some rows, without the columns that a sequential dataset makes itself."""
    if isinstance(train, SequentialDataset) and train.config["benchmark_filename"]:
        raise DataError(
            "fake users need the interactions that sequences are made of, got files of sequences in "
            "benchmark_filename; leave it out"
        )
    rows, made = train.inter_feat[torch.from_numpy(index)], set()
    if isinstance(train, SequentialDataset):
        made = {getattr(train, f"{field}_list_field", None) for field in rows.columns}
        made |= {train.item_list_length_field}
    return {name: rows[name].clone() for name in rows.columns if name not in made}


def _add_tokens(dataset, field: str, n: int) -> None:
    known = dataset.field2token_id[field]
    prefix = "fake_user"
    while f"{prefix}_0" in known:
        prefix = f"_{prefix}"
    tokens = [f"{prefix}_{k}" for k in range(n)]
    first = len(dataset.field2id_token[field])
    dataset.field2id_token[field] = np.append(dataset.field2id_token[field], tokens)
    known.update({token: first + k for k, token in enumerate(tokens)})


def _add_features(dataset, parts: dict, like: np.ndarray, first: int) -> None:
    """Fake users have the features of some real ones."""
    features = dataset.user_feat
    if features is None:
        return
    rows = features[torch.from_numpy(like)]
    rows[dataset.uid_field] = torch.arange(first, first + len(like))
    features = cat_interactions([features, rows])
    for each in (dataset, *parts.values()):
        each.user_feat = features
