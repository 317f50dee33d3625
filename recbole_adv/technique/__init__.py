"""How a step is improved, whatever the model."""

from recbole_adv.technique.base import Technique
from recbole_adv.technique.clip_norm import ClipNorm

__all__ = ["ClipNorm", "Technique"]
