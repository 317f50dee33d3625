"""Environments by k-means of what is known of a row: its user, its item, itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_adv.environment.balance import balanced_least_cost
from recbole_adv.environment.columns import column_values, columns_of
from recbole_adv.errors import ConfigError

_KINDS = ("token", "float", "token_seq", "float_seq")
_MAX_TOKENS = 200
_FITTED_ROWS = 100_000  # the centres are those of a sample of as many


def kmeans_environments(
    dataset, n_environments: int, features: Sequence[str] | None, seed: int, balanced: bool
) -> Tensor:
    """scikit-learn's k-means (ten starts) of the rows' features.

    Every feature has the same say: its columns are standardised and divided by the root of their
    number. balanced: environments of equal size about the same centres.

    Returns [N] int64, none empty.
    Raises :class:`ConfigError` where the rows have fewer different features than environments.
    """
    from sklearn.cluster import KMeans

    matrix = feature_matrix(dataset, features)
    n_rows = len(matrix)
    fitted = matrix
    if n_rows > _FITTED_ROWS:
        fitted = matrix[np.random.default_rng(seed).choice(n_rows, _FITTED_ROWS, replace=False)]
    n_different = len(np.unique(fitted, axis=0))
    if n_different < n_environments:
        raise ConfigError(
            f"kmeans cannot make {n_environments} environments of {n_different} different rows of "
            f"features, got n_environments={n_environments}; write {n_different} or less, or other "
            "environment_features"
        )
    centres = KMeans(n_environments, n_init=10, random_state=seed).fit(fitted)
    if balanced:
        return balanced_least_cost(torch.from_numpy(centres.transform(matrix)).square())
    return torch.from_numpy(centres.predict(matrix)).long()


def feature_matrix(dataset, features: Sequence[str] | None) -> np.ndarray:
    """The features of each training row.

    features: names of columns of interactions, users or items (tokens are one-hot, sequences of
    tokens the shares of their values), or of ``preload_weight``; None takes the logarithms of how
    many rows the user and the item have, and the time where there is one.
    Returns [N, F] float32.
    """
    if features is None:
        blocks = [_log_count(dataset, field) for field in (dataset.uid_field, dataset.iid_field)]
        if dataset.time_field in dataset.inter_feat:
            blocks.append(dataset.inter_feat[dataset.time_field].double())
    else:
        blocks = [_feature(dataset, name) for name in features]
    return np.concatenate([_standard(block) for block in blocks], axis=1).astype(np.float32)


def _log_count(dataset, field: str) -> Tensor:
    ids = dataset.inter_feat[field]
    return torch.bincount(ids)[ids].double().log()


def _feature(dataset, name: str) -> Tensor:
    if name in dataset._preloaded_weight:
        of_users = name in dataset.alias.get("user_id", ())
        ids = dataset.inter_feat[dataset.uid_field if of_users else dataset.iid_field]
        return torch.from_numpy(np.asarray(dataset._preloaded_weight[name]))[ids]
    if name not in columns_of(dataset, _KINDS) and dataset._preloaded_weight:
        known = ", ".join([*columns_of(dataset, _KINDS), *dataset._preloaded_weight])
        raise ConfigError(f"environment_features has {name!r}, which is none of {known}")
    values, kind = column_values(dataset, name, "kmeans", _KINDS)
    if not kind.startswith("token"):
        return values
    n_tokens = dataset.num(name)
    if n_tokens > _MAX_TOKENS:
        raise ConfigError(
            f"environment_features: {name!r} has {n_tokens} values, more than {_MAX_TOKENS}, of "
            "which a distance tells nothing; choose a column with fewer"
        )
    shares = torch.nn.functional.one_hot(values.reshape(len(values), -1), n_tokens)
    shares = shares[..., 1:].sum(dim=1).double()  # without padding
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1)


def _standard(block: Tensor) -> np.ndarray:
    matrix = block.reshape(len(block), -1).double().nan_to_num().numpy()
    deviation = matrix.std(axis=0)
    used = deviation > 0
    scaled = (matrix[:, used] - matrix[:, used].mean(axis=0)) / deviation[used]
    return scaled / max(used.sum(), 1) ** 0.5
