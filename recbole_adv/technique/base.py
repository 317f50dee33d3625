"""What a training technique may do to a step, whatever the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from recbole_adv.objective.parts import Loss

if TYPE_CHECKING:
    from recbole_adv.trainer.step import Turn

LossFunction = Callable[[Any], Loss]


class Technique:
    """A technique overrides the one or two methods that it needs; here they all do nothing.

    The step engine calls them in the order of its list; the two ``wrap`` methods nest, the first
    technique outermost.
    """

    def attach(self, model: nn.Module) -> None:
        """Called once before training. Refuse here, by a ConfigError, what cannot work."""

    def wrap_loss(self, loss: LossFunction, turn: Turn) -> LossFunction:
        """Change WHAT is minimised."""
        return loss

    def wrap_backward(self, backward: Callable[[], Loss], turn: Turn) -> Callable[[], Loss]:
        """Change HOW the gradient is found; ``backward`` fills it and returns the loss."""
        return backward

    def edit_gradients(self, turn: Turn) -> None:
        """Change the true, unscaled gradients of ``turn.player.parameters`` in place."""

    def after_step(self, turn: Turn) -> None:
        """Called after each optimizer step."""

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """The weights that are validated, tested and saved are those inside this context."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must have."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state_dict`."""
