"""The vector that a trained model has of each user."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from recbole.model.layers import FMEmbedding
from recbole.utils import ModelType
from torch import Tensor

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import clear_caches, traceless
from recbole_adv.robustness.trained import Trained
from recbole_adv.technique.attack.tables import embedding_tables


@torch.no_grad()
def user_vectors(run: Trained) -> tuple[Tensor, Tensor]:
    """User ids [u] and their vectors [u, D], without dropout, on the CPU.

    The first of these that the model, or the backbone that scores for it, offers:

    1. ``user_representation()``, [n_users, D], a method of its own;
    2. a sequential model's ``forward(item_seq, item_seq_len)`` of each user's training history;
    3. the first tensor of a ``forward()`` without arguments (LightGCN's propagated users);
    4. its tables of users, side by side;
    5. a context model's embeddings of the users' field.

    Raises :class:`ConfigError` where it has none.
    """
    model = run.model
    scorer = getattr(model, "backbone", model)
    model.eval()
    clear_caches(model)
    try:
        with traceless(model):
            for each in (model, scorer):
                if hasattr(each, "user_representation"):
                    return _checked(run, each.user_representation())  # type: ignore[operator]
            if run.config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
                return _of_histories(run, scorer)
            found = _propagated(run, scorer)
            return _checked(run, _looked_up(run) if found is None else found)
    finally:
        clear_caches(model)


def _checked(run: Trained, vectors: Any) -> tuple[Tensor, Tensor]:
    n_users = run.parts["train"].user_num
    if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != n_users:
        shape = list(getattr(vectors, "shape", ())) or type(vectors).__name__
        raise ConfigError(
            f"user_representation() of {type(run.model).__name__} must return [n_users, D] = "
            f"[{n_users}, D], got {shape}; mend it"
        )
    return torch.arange(1, n_users), vectors[1:].detach().float().cpu()


def _propagated(run: Trained, scorer) -> Tensor | None:
    required = [
        p
        for p in inspect.signature(scorer.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if required or type(scorer).forward is torch.nn.Module.forward:
        return None
    try:
        found = scorer.forward()
    except Exception:  # whatever it is, it is no propagation of all users
        return None
    first = found[0] if isinstance(found, (tuple, list)) and len(found) else found
    fits = isinstance(first, Tensor) and first.dim() == 2
    return first if fits and len(first) == run.parts["train"].user_num else None


def _looked_up(run: Trained) -> Tensor:
    tables = embedding_tables(run.model, list(run.player.parameters))
    found = [t.parameter.detach() for t in tables if t.kind == "user" and t.parameter.dim() == 2]
    if found:
        return torch.cat(found, dim=1)
    scorer = getattr(run.model, "backbone", run.model)
    table, uid = getattr(scorer, "token_embedding_table", None), run.config["USER_ID_FIELD"]
    fields = list(getattr(scorer, "token_field_names", None) or ())
    if not isinstance(table, FMEmbedding) or uid not in fields:
        raise ConfigError(_unknown(run))
    first = int(table.offsets[fields.index(uid)])
    return table.embedding.weight.detach()[first : first + run.parts["train"].user_num]


def _unknown(run: Trained) -> str:
    return (
        f"{type(run.model).__name__} has no vector of each user that leak-probe knows how to find; "
        "define a method user_representation(self) in the model that returns a tensor "
        "[n_users, D], row 0 being padding"
    )


def _of_histories(run: Trained, scorer) -> tuple[Tensor, Tensor]:
    """The vectors of what users had read at the end of training, in ids' order."""
    names = list(inspect.signature(scorer.forward).parameters)
    if len(names) != 2 or "len" not in names[1]:
        raise ConfigError(
            f"{type(run.model).__name__}.forward({', '.join(names)}) is not forward(item_seq, "
            "item_seq_len), so that no vector of a user can be read from it; define a method "
            "user_representation(self) in the model that returns a tensor [n_users, D], row 0 being "
            "padding"
        )
    user, history, length = last_histories(run.parts["train"])
    device, found = run.trainer.device, []
    for rows in torch.arange(len(user)).split(1024):
        vectors = scorer.forward(history[rows].to(device), length[rows].to(device))
        found.append(vectors.reshape(len(rows), -1).float().cpu())
    return user, torch.cat(found)


def last_histories(train) -> tuple[Tensor, Tensor, Tensor]:
    """Of each user the whole training history: ids [u], items [u, L], lengths [u].

    It is that of the last training row with the row's target at its end, the oldest item gone where
    that makes it too long.
    """
    rows = train.inter_feat
    user, length = rows[train.uid_field], rows[train.item_list_length_field]
    order = torch.argsort(user, stable=True)  # rows of a user stand in the order of time
    last = order[torch.cat([user[order].diff() != 0, torch.ones(1, dtype=torch.bool)])]
    history, length = rows[train.item_id_list_field][last].clone(), length[last].clone()
    full = length == history.shape[1]
    history[full] = history[full].roll(-1, dims=1)
    length = length + (~full).to(length.dtype)
    history[torch.arange(len(last)), length - 1] = rows[train.iid_field][last]
    return user[last], history, length
