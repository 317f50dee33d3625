"""Sweeps over hyperparameters by RecBole's ``HyperTuning`` or Ray Tune.

Settings are compared by the validation score alone. What a sweep found out is on disk the moment it
is known, so that a sweep that was ended goes on where it was. Ray, hyperopt and the plotting libraries
are imported where they are used.
"""

from recbole_adv.sweep.run import run_sweep

__all__ = ["run_sweep"]
