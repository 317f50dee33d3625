"""Which training row belongs to which environment."""

from recbole_adv.environment.assignment import EnvironmentAssignment
from recbole_adv.environment.source import SOURCES, environments_of, mass_quantiles

__all__ = ["SOURCES", "EnvironmentAssignment", "environments_of", "mass_quantiles"]
