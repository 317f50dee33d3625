"""Networks that say to which environment a training row belongs.

One of your own is a module with ``forward(user [B], item [B], index [B]) -> logits [B, E]``, ``index``
the numbers of the training rows. ``of_all_rows() -> logits [N, E]`` is optional: without it,
:func:`logits_of_rows` asks ``forward`` for all rows, a chunk at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import undisturbed

_CHUNK = 65536


def logits_of_rows(generator: nn.Module, user: Tensor, item: Tensor, device) -> Tensor:
    """Logits [N, E] of every training row, whose user and item [N] need not lie on ``device``."""
    if hasattr(generator, "of_all_rows"):
        return generator.of_all_rows()
    training = generator.training
    generator.eval()  # without dropout, as in evaluation
    try:
        return _by_chunks(generator, user, item, device)
    finally:
        generator.train(training)


def check_generator(generator: nn.Module, user: Tensor, item: Tensor, n: int, device) -> None:
    """Raise :class:`ConfigError` unless it gives rows a logit for each of ``n`` environments."""
    wanted = (
        f"write forward(user [B], item [B], index [B]) -> logits [B, {n}] (n_environments: {n})"
    )
    few = slice(n + 1)  # not as many rows as environments
    try:
        with torch.no_grad(), undisturbed(generator):
            found = _by_chunks(generator, user[few], item[few], device)
    except Exception as error:  # whatever the module does
        raise ConfigError(
            f"env_generator cannot be called: {type(error).__name__}: {error}; {wanted}"
        ) from error
    shape, right = list(found.shape), [len(user[few]), n]
    if shape != right:
        raise ConfigError(
            f"env_generator returned logits of shape {shape} for {right[0]} rows; {wanted}"
        )


def _by_chunks(generator: nn.Module, user: Tensor, item: Tensor, device) -> Tensor:
    index = torch.arange(len(user), device=device)
    rows = zip(user.split(_CHUNK), item.split(_CHUNK), index.split(_CHUNK))
    return torch.cat([generator(u.to(device), i.to(device), n) for u, i, n in rows])


class TableGenerator(nn.Module):
    """A free logit for each training row and environment, N(0, 1) at the start (EIIL).

    It learns a row only when it is visited, and nothing of rows it has not seen.
    """

    def __init__(self, config, dataset, backbone):
        super().__init__()
        self.logit = nn.Embedding(len(dataset.inter_feat), config["n_environments"])
        nn.init.normal_(self.logit.weight)

    def forward(self, user: Tensor, item: Tensor, index: Tensor) -> Tensor:
        """user, item, index: [B].   Returns logits [B, E]."""
        return self.logit(index)

    def of_all_rows(self) -> Tensor:
        """Logits of every training row [N, E]."""
        return self.logit.weight


class MLPGenerator(nn.Module):
    """Logits from what is known of a row: the product of the backbone's user and item embeddings as
    they are at the moment, without gradient (its sum is the score of a dot-product model), the
    logarithms of their training counts, and the time.

    A backbone without tables of one row for each user and item of the same width gives what it has:
    SASRec the item's embedding, DeepFM none. Counts and time, which are standardised, remain.
    """

    def __init__(self, config, dataset, backbone):
        super().__init__()
        user, item = dataset.inter_feat[dataset.uid_field], dataset.inter_feat[dataset.iid_field]
        self.register_buffer("row_user", user.clone(), persistent=False)
        self.register_buffer("row_item", item.clone(), persistent=False)
        self.register_buffer("user_count", _log_count(user, dataset.user_num), persistent=False)
        self.register_buffer("item_count", _log_count(item, dataset.item_num), persistent=False)
        time = dataset.time_field
        row_time = dataset.inter_feat[time].float() if time in dataset.inter_feat else None
        self.register_buffer(
            "row_time", None if row_time is None else _standard(row_time), persistent=False
        )
        # In a tuple, so that the tables do not become submodules, hence the max player's.
        self._tables = tuple(_pairs(backbone, dataset.user_num, dataset.item_num))
        size = 2 + (row_time is not None) + sum(pair[-1].embedding_dim for pair in self._tables)
        hidden_sizes = config["generator_hidden_size"]
        self._with_one = bool(hidden_sizes)
        self._n_columns = self._with_one + size
        # RecBole's MLPLayers draws dropout masks also where the probability is 0, which would cost
        # more than the network itself.
        layers: list[nn.Module] = []
        for hidden in hidden_sizes:
            layers.append(nn.Linear(size, hidden) if layers else _LinearOfOnes(size, hidden))
            layers.append(nn.ReLU(inplace=True))
            size = hidden
        self.mlp = nn.Sequential(*layers, _Logits(size, config["n_environments"]))

    def forward(self, user: Tensor, item: Tensor, index: Tensor) -> Tensor:
        """user, item, index: [B].   Returns logits [B, E]."""
        # Written in place: to put them together from parts would copy as much again.
        features = self.user_count.new_empty(len(user), self._n_columns)
        known = [1.0] * self._with_one + [self.user_count[user], self.item_count[item]]
        if self.row_time is not None:
            known.append(self.row_time[index])
        for column, value in enumerate(known):
            features[:, column] = value
        end = len(known)
        for *users, items in self._tables:
            start, end = end, end + items.embedding_dim
            part, embedding = features[:, start:end], F.embedding(item, items.weight.detach())
            if users:
                torch.mul(embedding, F.embedding(user, users[0].weight.detach()), out=part)
            else:
                part.copy_(embedding)
        return self.mlp(features)

    def of_all_rows(self) -> Tensor:
        """Logits of every training row [N, E]."""
        return _by_chunks(self, self.row_user, self.row_item, self.row_user.device)


class _LinearOfOnes(nn.Module):
    """nn.Linear on rows [1, x], whose bias is the first row of ``weight`` [1 + in, out]: one product forward
    and one backward, where nn.Linear's weight [out, in] makes the backward slower and its bias takes a sum.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        start = nn.Linear(n_in, n_out)
        self.weight = nn.Parameter(torch.cat([start.bias[None], start.weight.t()]).detach())

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


class _Logits(nn.Linear):
    """Of each environment they lie in a row, for a softmax over the first dimension of their transpose."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.addmm(self.bias[:, None], self.weight, rows.t()).t()


def _log_count(ids: Tensor, n: int) -> Tensor:
    return _standard(ids.bincount(minlength=n).float().log1p())


def _standard(value: Tensor) -> Tensor:
    return (value - value.mean()) / value.std().clamp(min=1e-6)


def _pairs(backbone: nn.Module, n_users: int, n_items: int) -> list[tuple[nn.Embedding, ...]]:
    """(user table, item table) of the same width, or (item table,) where there is no user's."""
    users, items = _tables(backbone, n_users, "user"), _tables(backbone, n_items, "item")
    if not users:
        return [(table,) for table in items]
    return [(u, i) for u, i in zip(users, items) if u.embedding_dim == i.embedding_dim]


def _tables(backbone: nn.Module, n: int, name: str) -> list[nn.Embedding]:
    """The embeddings with one row for each user (item); the name decides where the numbers agree."""
    other = {"user": "item", "item": "user"}[name]
    return [
        module
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == n and other not in path
    ]
