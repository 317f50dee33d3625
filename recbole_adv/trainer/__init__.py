"""The only code that steps."""

from recbole_adv.trainer.adv_trainer import AdvTrainer
from recbole_adv.trainer.compose import compose, trainer_class, trainer_for_stock
from recbole_adv.trainer.inv_trainer import INVTrainer

__all__ = ["AdvTrainer", "INVTrainer", "compose", "trainer_class", "trainer_for_stock"]
