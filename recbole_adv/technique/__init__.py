"""How a step is improved, whatever the model: one module and one property file for each technique."""

from recbole_adv.technique.base import Technique

__all__ = ["Technique"]
