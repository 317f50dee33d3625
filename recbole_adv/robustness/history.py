"""Items of the histories that a sequential model reads, replaced when it is evaluated.

Of a history of n items, p n (rounded, half up) are replaced; the target stays what it was, is never
put into the history, and padding stays padding.

* ``random``: at places of the seed's choice, by any other item;
* ``similar``: at the same places, by one of the ``NEAREST`` items whose embeddings have the highest
  cosine;
* ``gradient`` (HotFlip): item v at place t in the place of e_t changes the loss by
  ``(e_v - e_t) . g_t`` to first order, g_t the gradient in the embedding that was looked up there;
  for each place the best v, and of the places those that gain most. The loss is the cross entropy of
  the model's own first choice: an attacker does not know the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import traceless
from recbole_adv.robustness.tables import Point
from recbole_adv.robustness.trained import Trained, cudnn_off
from recbole_adv.technique.attack.tables import embedding_tables
from recbole_adv.technique.attack.weights import looked_up

NEAREST = 10
"""How many items count as similar."""


class HistoryAttack:
    """Corrupts the histories of the test rows of one model."""

    def __init__(self, run: Trained):
        self.run = run
        dataset = run.test_data._dataset
        self.rows = dataset.inter_feat
        self.field = dataset.item_id_list_field
        self.history: Tensor = self.rows[self.field]
        self.length: Tensor = self.rows[dataset.item_list_length_field]
        self.target: Tensor = self.rows[dataset.iid_field]
        self.n_items: int = dataset.item_num
        self._best: tuple[Tensor, Tensor] | None = None

    def corrupted(self, kind: str, share: float, seed: int) -> Tensor:
        """Histories [N, L], replaced."""
        generator = torch.Generator().manual_seed(seed)
        size = self.history.shape
        places = torch.arange(size[1]) < self.length.unsqueeze(1)
        n_replaced = (self.length * share + 0.5).floor().long().unsqueeze(1)
        order = torch.rand(size, generator=generator)
        if kind == "gradient":
            gain, item = self._flips()
            order = gain
        elif kind == "random":
            item = self._any_other(generator)
        else:
            item = self._near(generator)
        order = order.masked_fill(~places, -torch.inf)
        rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = places & (rank < n_replaced) & (item > 0)
        return torch.where(chosen, item, self.history)

    def _any_other(self, generator: torch.Generator) -> Tensor:
        """Items [N, L], uniform over all but the one that is there and the target."""
        here, target = self.history, self.target.unsqueeze(1).expand_as(self.history)
        low, high = torch.minimum(here, target), torch.maximum(here, target)
        same = low == high
        # Of the items 1 .. I-1 without one or two: a number, moved past those that are left out.
        left = torch.where(same, self.n_items - 2, self.n_items - 3)
        drawn = (torch.rand(here.shape, generator=generator, dtype=torch.float64) * left).long() + 1
        drawn += drawn >= low.clamp(min=1)
        drawn += (drawn >= high) & ~same
        return torch.where(left > 0, drawn, 0)

    def _near(self, generator: torch.Generator) -> Tensor:
        """Items [N, L], each one of the nearest of the one that is there; never the target."""
        nearest = nearest_items(self.item_table()[: self.n_items].detach(), NEAREST + 1).cpu()
        of_here = nearest[self.history]  # [N, L, NEAREST + 1], of which one may be the target
        allowed = of_here != self.target.view(-1, 1, 1)
        allowed &= allowed.cumsum(-1) <= NEAREST
        allowed &= of_here > 0
        number = torch.rand(of_here.shape, generator=generator).masked_fill(~allowed, -1.0)
        best = number.max(dim=-1)
        item = of_here.gather(-1, best.indices.unsqueeze(-1)).squeeze(-1)
        return torch.where(best.values >= 0, item, 0)

    def item_table(self) -> nn.Parameter:
        """The items' embeddings; the widest table of that kind."""
        model = self.run.model
        tables = [t for t in embedding_tables(model, list(model.parameters())) if t.kind == "item"]
        if not tables:
            raise ConfigError(
                f"{type(model).__name__} has no table of items' embeddings, which --history similar "
                "and gradient need; write --history random"
            )
        return max(tables, key=lambda t: t.parameter[0].numel()).parameter

    # --- HotFlip --------------------------------------------------------------------------------

    def _flips(self) -> tuple[Tensor, Tensor]:
        """The largest gain [N, L], to first order, and the item that brings it."""
        if self._best is None:
            loader, gains, items = self.run.test_data, [], []
            dataset = loader._dataset
            with traceless(self.run.model), cudnn_off(self.run.model):
                for rows in torch.arange(len(self.history)).split(256):
                    batch = loader.transform(dataset, dataset[rows.numpy()])
                    gain, item = self.flips_of(batch.to(self.run.trainer.device))
                    gains.append(gain.cpu())
                    items.append(item.cpu())
            self._best = torch.cat(gains), torch.cat(items)
        return self._best

    def flips_of(self, batch: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`_flips`, of a batch as the model reads it."""
        weight, history = self.item_table(), batch[self.field]
        target = batch[self.run.test_data._dataset.iid_field]
        gradient = self.input_gradient(batch)
        table = weight.detach()
        own = (table[history] * gradient).sum(-1)
        gains, items = torch.empty_like(own), torch.empty_like(history)
        for place in range(history.shape[1]):  # [B, I] at a time
            gain = gradient[:, place] @ table[: self.n_items].T - own[:, place].unsqueeze(1)
            gain[:, 0] = -torch.inf
            gain.scatter_(1, target.unsqueeze(1), -torch.inf)
            gain.scatter_(1, history[:, place : place + 1], -torch.inf)
            gains[:, place], items[:, place] = gain.max(dim=1)
        return gains, items

    def input_gradient(self, batch: Any) -> Tensor:
        """The gradient [B, L, D] of :meth:`loss` in the embeddings of the history."""
        history, found = batch[self.field], []
        weight = self.item_table()

        def keep(module, args, kwargs, output):
            index = looked_up(args, kwargs)
            fits = index.dim() == 2 and len(index) == len(history)
            if fits and index.shape[1] >= history.shape[1] and output.requires_grad:
                if torch.equal(index[:, : history.shape[1]], history):
                    found.append(output)

        modules = [m for m in self.run.model.modules() if getattr(m, "weight", None) is weight]
        handles = [
            m.register_forward_hook(keep, with_kwargs=True)
            for m in modules
            if isinstance(m, nn.Embedding)
        ]
        try:
            with torch.enable_grad():
                loss = self.loss(batch)
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise ConfigError(
                f"{type(self.run.model).__name__} does not look its history up item by item, so that "
                "--history gradient has no gradient to follow; write --history random similar"
            )
        gradients = torch.autograd.grad(loss, found, allow_unused=True)
        length = history.shape[1]
        return sum(g[:, :length] for g in gradients if g is not None)  # type: ignore[return-value]

    def loss(self, batch: Any, label: Tensor | None = None) -> Tensor:
        """The summed cross entropy of ``label`` [B]; None: of the model's own first choice."""
        score = self.run.model.full_sort_predict(batch)  # type: ignore[operator]
        score = score.view(len(batch[self.field]), -1)
        score = score[:, 1 : self.n_items]
        label = score.argmax(dim=1) if label is None else label - 1
        return nn.functional.cross_entropy(score, label, reduction="sum")

    @contextmanager
    def replaced(self, history: Tensor) -> Iterator[None]:
        """The test rows have these histories inside."""
        self.rows.interaction[self.field] = history
        try:
            yield
        finally:
            self.rows.interaction[self.field] = self.history

    def measure(self, history: Tensor, numbers: Any) -> dict[str, float]:
        """Metrics with these histories, and the share of their items that was replaced."""
        with self.replaced(history):
            figures = self.run.evaluate(numbers)
        changed = (history != self.history).sum().item()
        return figures | {"replaced": changed / max(int(self.length.sum()), 1)}


def nearest_items(table: Tensor, n: int) -> Tensor:
    """For each item the n others of the highest cosine, nearest first; [I, n], 0 where there is none.

    table: [I, D], of which row 0 is padding.
    """
    unit = nn.functional.normalize(table, dim=1)
    n = min(n, len(table) - 1)
    found = []
    for rows in torch.arange(len(table), device=table.device).split(1024):
        cosine = unit[rows] @ unit.T
        cosine[:, 0] = -torch.inf
        cosine[torch.arange(len(rows), device=table.device), rows] = -torch.inf
        best = cosine.topk(n, dim=1)
        found.append(torch.where(best.values > -torch.inf, best.indices, 0))
    return torch.cat(found)


def history_points(
    run: Trained, kinds: Sequence[str], shares: Sequence[float], seeds: Sequence[int], numbers: Any
) -> Iterator[Point]:
    """The clean model once a seed, and each corruption of each share.

    HotFlip draws nothing, so its seeds would be one and the same figure; it is made once.
    """
    attack = HistoryAttack(run)
    once: dict[float, dict[str, float]] = {}
    for seed in seeds:
        yield Point(run.name, "none", 0.0, seed, attack.measure(attack.history, numbers))
        for kind in kinds:
            for share in shares:
                if kind == "gradient" and share in once:
                    figures = once[share]
                else:
                    figures = attack.measure(attack.corrupted(kind, share, seed), numbers)
                if kind == "gradient":
                    once[share] = figures
                yield Point(run.name, kind, share, seed, figures)
