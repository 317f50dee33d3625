"""Which passes make up an attack, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_adv.objective.parts import Loss, parts, total
from recbole_adv.technique.attack import ball
from recbole_adv.technique.attack.consistency import Predictions
from recbole_adv.technique.attack.passes import Moves, Passes, Unusable
from recbole_adv.technique.attack.presets import Recipe


@dataclass(frozen=True)
class Attacked:
    """What became of one batch.

    Attributes:
        loss: for the log: the loss at the weights where it counts, else the mean of what counted.
        perturbed: the loss at the last perturbed weights; None if that was left out.
        clean: the loss at the weights, if a pass was made there.
        norms: L2 norms of the rows of the last perturbation, in units of the radius; None: of none.
        moves: where the ascent stands.
    """

    loss: Loss
    perturbed: Tensor | None
    clean: Tensor | None
    norms: list[Tensor] | None
    moves: Moves


class Ascent:
    """The steps of a recipe."""

    def __init__(self, recipe: Recipe, min_gradient: float):
        self.recipe, self.min_gradient = recipe, min_gradient

    def direction(self, passes: Passes, gradients: list[Tensor]) -> list[Tensor]:
        """The move of length 1 along which the loss grows fastest; padding does not move."""
        r = self.recipe
        if r.scope in ("table", "global") or self.min_gradient > 0:
            # Padding must not count in the norm, or the median, that all rows share.
            gradients = passes.place.mask_([gradient.clone() for gradient in gradients])
        moves = ball.directions(gradients, r.scope, r.norm, self.min_gradient)
        return passes.place.mask_(moves)

    def move(self, passes: Passes, moves: Moves, gradients: list[Tensor]) -> list[Tensor]:
        """The next point of the ascent."""
        r = self.recipe
        steps = self.direction(passes, gradients)
        return ball.ascend(moves, steps, r.rate, r.scope, r.norm, r.projection)

    def start(self, passes: Passes) -> Moves:
        """Where the ascent begins."""
        if self.recipe.init == "zero":
            return None
        passes.scout()
        moves = ball.random_start(passes.place.shapes(), self.recipe.scope, self.recipe.norm)
        return passes.place.mask_(moves)


def last_counts(passes: Passes, ascent: Ascent, weight: float) -> Attacked:
    """FGM, APR, PGD, Fast: the gradient at the end of the ascent, beside the clean one or alone."""
    clean = gradients = None
    if ascent.recipe.keep_clean:
        clean, gradients = passes.counted(None, 1.0)
    moves = ascent.start(passes)
    if moves is not None:
        gradients = None
    reference = None if clean is None else total(clean)
    try:
        for _ in range(ascent.recipe.steps):
            if gradients is None:
                gradients = passes.look(moves)[1]
            moves = ascent.move(passes, moves, gradients)
            gradients = None
        return _followed(passes, moves, weight, clean, reference)
    except Unusable:
        return _left_out(passes, clean)


def every_counts(passes: Passes, ascent: Ascent, weight: float, moves: Moves) -> Attacked:
    """FreeLB, Free AT: each pass of the ascent counts, with equal weights.

    FreeLB's K steps join K + 1 passes; a perturbation that is kept (``moves``: where it stands) also
    moves after the last one.
    """
    recipe = ascent.recipe
    clean = passes.counted(None, 1.0)[0] if recipe.keep_clean else None
    moves = ascent.start(passes) if moves is None else moves
    reference = total(clean) if clean is not None else None
    n_passes = recipe.steps + (not recipe.persistent)
    losses: list[tuple[Tensor, ...]] = []
    at: Moves = None
    for number in range(n_passes):
        try:
            loss, gradients = passes.counted(moves, weight / n_passes)
        except Unusable:
            # The rest of the weight falls to the gradient at the weights.
            loss = passes.last(None, weight * (n_passes - number) / n_passes)
            return Attacked(loss if clean is None else clean, None, None, None, None)
        losses.append(parts(loss))
        if moves is None and reference is None:
            reference = total(loss)
        at = moves
        if recipe.persistent or number + 1 < n_passes:
            moves = ascent.move(passes, moves, gradients)
    means = tuple(torch.stack(part).mean() for part in zip(*losses))
    shown = clean if clean is not None else means if len(means) > 1 else means[0]
    return Attacked(shown, sum(losses[-1]), reference, row_norms(at), moves)


def consistency_counts(
    passes: Passes, ascent: Ascent, weight: float, predictions: Predictions, probe: float
) -> Attacked:
    """VAT: the divergence from the model's own predictions, where it grows fastest.

    Its gradient at the weights is zero, so each step begins at a random move of length ``probe``
    and is the direction of the gradient there (a step of the power iteration).
    """
    clean = passes.counted(None, 1.0)[0]
    with passes.repeat():
        before = predictions.checked(passes.batch)

    def divergence(batch) -> Tensor:
        return predictions.divergence(before, predictions(batch))

    moves = passes.place.mask_([torch.randn_like(like) for like in passes.place.shapes()])
    moves = ascent.direction(passes, moves)
    try:
        with passes.minimising(divergence):
            for _ in range(ascent.recipe.steps):
                gradients = passes.look([probe * move for move in moves])[1]
                moves = ascent.direction(passes, gradients)
            return _followed(passes, moves, weight, clean, torch.zeros_like(total(clean)))
    except Unusable:
        return _left_out(passes, clean)


def _followed(
    passes: Passes, moves: Moves, weight: float, clean: Loss | None, reference: Tensor | None
) -> Attacked:
    """The pass at the end of the ascent, which counts."""
    norms = row_norms(moves)
    loss = passes.last(moves, weight, torch.stack([norm.any() for norm in norms]).any())
    return Attacked(loss if clean is None else clean, total(loss), reference, norms, moves)


def _left_out(passes: Passes, clean: Loss | None) -> Attacked:
    """Without the adversarial term the clean one must count, if it has not."""
    shown = passes.last(None, 1.0) if clean is None else clean
    return Attacked(shown, None, None, None, None)


def row_norms(moves: Moves) -> list[Tensor] | None:
    """The L2 norm of everything that shares the first index."""
    return None if moves is None else [n.flatten() for n in ball.lengths(moves, "row")]
