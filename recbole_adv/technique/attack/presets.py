"""The published recipes as one set of axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a perturbation is found and used; the defaults are those of ``apr``.

    Args:
        scope: what has a norm of its own: ``row``, ``table``, ``global``, ``sample``.
        norm: ``l2`` or ``linf``.
        epsilon: the radius; ``relative``: in units of a table's mean row norm.
        steps: ascent steps on a batch; ``step_size``: their length in the units of epsilon, None:
            ``step_rate`` times epsilon, and without that epsilon for one step, 2.5 epsilon / steps
            for several.
        projection: ``ball``, ``box`` or ``none``.
        init: ``zero`` or ``random``.
        keep_clean: the gradient at the weights counts too.
        start_share: share of the epochs that pass before the first attack.
        every_pass: each pass of the ascent counts, with equal weights, not the last alone.
        persistent: the perturbation of a row is kept for the next batch.
        consistency: the loss that is attacked is the divergence from the model's own predictions.
    """

    scope: str = "row"
    norm: str = "l2"
    epsilon: float = 0.5
    relative: bool = False
    steps: int = 1
    step_size: float | None = None
    step_rate: float | None = None
    projection: str = "ball"
    init: str = "zero"
    keep_clean: bool = True
    start_share: float = 0.0
    every_pass: bool = False
    persistent: bool = False
    consistency: bool = False

    @property
    def rate(self) -> float:
        """The length of a step in units of the radius."""
        if self.step_size is not None and self.epsilon > 0:
            return self.step_size / self.epsilon
        if self.step_rate is not None:
            return self.step_rate
        return 1.0 if self.steps == 1 else 2.5 / self.steps


PRESETS: Mapping[str, Recipe] = {
    # He et al., SIGIR 2018: rows, the clean gradient's direction, after half of the epochs.
    "apr": Recipe(start_share=0.5),
    # Miyato et al., ICLR 2017, and Madry et al., ICLR 2018, as used on embeddings: one norm a table.
    "fgm": Recipe(scope="table", epsilon=1.0),
    "pgd": Recipe(scope="table", epsilon=1.0, steps=3, step_rate=0.3),
    # Zhu et al., ICLR 2020: K ascent steps, K + 1 passes that all count, on the outputs of lookups.
    "freelb": Recipe(
        scope="sample", epsilon=0.2, relative=True, steps=3, keep_clean=False, every_pass=True
    ),
    # Shafahi et al., NeurIPS 2019: one pass moves the weights and the perturbation, which stays.
    "freeat": Recipe(
        norm="linf", epsilon=0.2, relative=True, keep_clean=False, every_pass=True, persistent=True
    ),
    # Wong et al., ICLR 2020: from a random point, one step that is longer than the radius.
    "fast": Recipe(
        norm="linf",
        epsilon=0.2,
        relative=True,
        step_rate=1.25,
        init="random",
        keep_clean=False,
    ),
    # Miyato et al., TPAMI 2018: no labels; the direction in which the predictions change most.
    "vat": Recipe(epsilon=0.2, relative=True, consistency=True),
}


def recipe_of(preset: str, given: Mapping[str, Any]) -> Recipe:
    """The preset's recipe with what was given, and is not None, in its place."""
    names = {field.name for field in fields(Recipe)}
    own = {name: v for name, v in given.items() if name in names and v is not None}
    return replace(PRESETS[preset], **own)
