"""Attacks on the embedding tables of a trained model.

With g the mean gradient of the training loss over the training rows, N(g) each row by its L2 norm,
and epsilon the radius of a table:

* ``random``: epsilon * N(normal noise), the control;
* ``fgsm``: epsilon * N(g);
* ``pgd``: K steps ``delta <- P(delta + 2.5 epsilon / K * N(g(theta + delta)))`` from zero, P the
  projection of each row onto the ball ||delta_r|| <= epsilon;
* ``box``: the same steps, P clips each element to [-epsilon, epsilon], as MSAP does. A row may then
  be longer than epsilon (up to 2.5 epsilon, and sqrt(D) epsilon): compare realised norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import clear_caches, random_state
from recbole_adv.robustness.trained import Trained
from recbole_adv.technique.attack import ball
from recbole_adv.technique.attack.radius import mean_row_norm
from recbole_adv.technique.attack.tables import Table, find_tables
from recbole_adv.technique.attack.weights import WeightPlace


@dataclass(frozen=True)
class Point:
    """What one attack did.

    Attributes:
        model: the run's name.
        attack: ``none``, or its name.
        strength: epsilon, or the share of a history that is replaced.
        seed: of noise, of sampled negatives, of what is replaced.
        figures: metrics by RecBole's names, and what the attack amounted to.
    """

    model: str
    attack: str
    strength: float
    seed: int
    figures: dict[str, float]


class TableAttack:
    """Perturbs the tables of one model.

    Args:
        relative: epsilon is in units of a table's mean row norm.
        steps: K of ``pgd`` and ``box``.
        targets: regular expressions of parameters; None takes every embedding table.
    """

    def __init__(
        self,
        run: Trained,
        relative: bool,
        steps: int,
        targets: Sequence[str] | None = None,
    ):
        self.run, self.relative, self.steps = run, relative, steps
        self.tables = _tables(run, targets)
        self.place = WeightPlace(self.tables, [False] * len(self.tables))
        self._unit = {table.name: mean_row_norm(table) for table in self.tables}

    def radii(self, epsilon: float) -> list[float]:
        """The radius of each table."""
        return [epsilon * (self._unit[t.name] if self.relative else 1.0) for t in self.tables]

    def clean_gradient(self, seed: int) -> list[Tensor]:
        """The mean gradient at the trained weights."""
        return self.run.mean_gradient(self.place.parameters, seed)[1]

    def moves(self, attack: str, epsilon: float, seed: int, first: list[Tensor]) -> list[Tensor]:
        """A perturbation in units of the radius.   first: :meth:`clean_gradient` of the seed."""
        if attack == "random":
            generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on any device
            noise = [torch.randn(p.shape, generator=generator).to(p) for p in self.place.parameters]
            return self._directions(noise)
        if attack == "fgsm":
            return self._directions(first)
        projection = "box" if attack == "box" else "ball"
        moves, gradient, radii = None, first, self.radii(epsilon)
        for step in range(self.steps):
            if step:
                with self.place.at(moves, radii):
                    gradient = self.run.mean_gradient(self.place.parameters, seed)[1]
            rate = 2.5 / self.steps if self.steps > 1 else 1.0
            directions = self._directions(gradient)
            moves = ball.ascend(moves, directions, rate, "row", "l2", projection)
        assert moves is not None
        return moves

    def _directions(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        return self.place.mask_(ball.directions(gradients, "row", "l2"))

    def measure(self, moves: Sequence[Tensor] | None, epsilon: float, seed: int, numbers: Any):
        """Figures at the weights plus ``radius * moves`` (None: at the weights)."""
        radii = self.radii(epsilon)
        try:
            with self.place.at(moves, radii):
                figures = self.run.evaluate(numbers)
                figures["train_loss"] = self.run.mean_loss(seed)
        finally:
            clear_caches(self.run.model)
        return figures | self._norms(moves, radii)

    def _norms(self, moves, radii) -> dict[str, float]:
        """Of the rows that moved: the mean and the largest norm, and both in units of the row's own."""
        if moves is None:
            return dict.fromkeys(("delta_mean", "delta_max", "relative_mean", "relative_max"), 0.0)
        norms, shares = [], []
        for move, radius, parameter in zip(moves, radii, self.place.parameters):
            norm = radius * torch.linalg.vector_norm(move.flatten(1), dim=1).double()
            own = torch.linalg.vector_norm(parameter.detach().flatten(1), dim=1).double()
            moved = norm > 0
            norms.append(norm[moved])
            shares.append((norm / own)[moved & (own > 0)])
        norm, share = torch.cat(norms), torch.cat(shares)

        def of(values: Tensor) -> tuple[float, float]:
            return (values.mean().item(), values.max().item()) if values.numel() else (0.0, 0.0)

        (mean, largest), (share_mean, share_max) = of(norm), of(share)
        return {
            "delta_mean": mean,
            "delta_max": largest,
            "relative_mean": share_mean,
            "relative_max": share_max,
        }


def row_norms(tables: Sequence[Table]) -> dict[str, dict[str, list[float]]]:
    """The histogram of the rows' norms of each table, padding left out: ``edges``, ``share``."""
    found = {}
    for table in tables:
        norms = torch.linalg.vector_norm(table.parameter.detach().flatten(1), dim=1).double()
        kept = torch.ones_like(norms, dtype=torch.bool)
        if table.padding is not None:
            kept[table.padding] = False
        count, edges = torch.histogram(norms[kept].cpu(), bins=30)
        share = count / count.sum()
        found[table.name] = {"edges": edges.tolist(), "share": share.tolist()}
    return found


def table_points(
    attack: TableAttack, attacks: Sequence[str], epsilons: Sequence[float], seeds: Sequence[int]
) -> Iterator[Point]:
    """The clean model once a seed, and every attack at every epsilon above 0."""
    name, numbers = attack.run.name, random_state()
    for seed in seeds:
        yield Point(name, "none", 0.0, seed, attack.measure(None, 0.0, seed, numbers))
        # Noise alone asks for no gradient.
        gradient = attack.clean_gradient(seed) if set(attacks) - {"random"} else []
        for kind in attacks:
            for epsilon in epsilons:
                moves = attack.moves(kind, epsilon, seed, gradient)
                yield Point(
                    name, kind, epsilon, seed, attack.measure(moves, epsilon, seed, numbers)
                )


def _tables(run: Trained, targets: Sequence[str] | None) -> list[Table]:
    try:
        return find_tables(run.model, run.player.parameters, targets)
    except ConfigError as error:  # in the words of the technique's keys
        words = str(error).replace("embedding_attack_targets:", "--targets")
        raise ConfigError(words.replace("embedding_attack finds", "the attack finds")) from error
