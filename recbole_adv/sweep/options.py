"""How a sweep is made: the flags of ``recbole-adv sweep``, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, fields

from recbole_adv.errors import ConfigError, suggest

_ALGORITHMS = {
    **{"exhaustive": "grid", "grid": "grid", "random": "random"},
    **{"bayes": "tpe", "hyperopt": "tpe", "tpe": "tpe"},
}
_AT_LEAST = {
    **{"max_evals": 1, "retries": 0, "seeds": 0, "top": 1, "early_stop": 1, "grace_epochs": 1},
    **{"perturbation_epochs": 1, "concurrency": 1, "cpus_per_trial": 0, "gpus_per_trial": 0},
}
_OF_RAY = {
    **{"scheduler": "none", "cpus_per_trial": 1.0, "gpus_per_trial": None, "concurrency": None},
    **{"ray_address": None, "dashboard": False},
}


@dataclass(frozen=True)
class Options:
    """The flags; None stands for a default that depends on the model or the machine.

    tool: ``hyperopt`` (RecBole's ``HyperTuning``, one trial at a time) or ``ray`` (Ray Tune); algo:
    ``exhaustive`` or ``grid``, ``random``, ``bayes`` or ``hyperopt``; max_evals: trials of a search
    that has no end, members of a population; early_stop: trials without a better score after which
    the search ends; scheduler: ``none``, ``asha``, ``pbt``; seeds: how often the best ``top``
    settings are run again.
    """

    tool: str = "hyperopt"
    algo: str = "exhaustive"
    max_evals: int = 30
    early_stop: int | None = None
    retries: int = 1
    seeds: int = 0
    top: int = 3
    scheduler: str = "none"
    grace_epochs: int | None = None
    reduction_factor: float = 3.0
    perturbation_epochs: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None
    concurrency: int | None = None
    ray_address: str | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        _one_of("tool", self.tool, ("hyperopt", "ray"))
        _one_of("algo", self.algo, tuple(_ALGORITHMS))
        _one_of("scheduler", self.scheduler, ("none", "asha", "pbt"))
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"--{name} must be at least {least}, got {value}")
        if not self.reduction_factor > 1:
            raise ConfigError(f"--reduction_factor must be above 1, got {self.reduction_factor}")
        if self.tool == "hyperopt":
            for name, default in _OF_RAY.items():
                if getattr(self, name) != default:
                    raise ConfigError(f"--{name} is for Ray; write --tool=ray, or leave it out")
        elif self.early_stop is not None:
            raise ConfigError("--early_stop is for HyperTuning; leave it out, or --tool=hyperopt")
        if self.scheduler == "pbt" and self.search == "tpe":
            raise ConfigError(
                f"--scheduler=pbt changes the settings itself, got --algo={self.algo}; write "
                "--algo=random or --algo=grid for those it begins with"
            )

    @property
    def search(self) -> str:
        """``grid``, ``random`` or ``tpe``."""
        return _ALGORITHMS[self.algo]

    @property
    def startup(self) -> int:
        """How many settings TPE draws at random before it models anything."""
        return min(20, max(5, self.max_evals // 3))


NAMES = tuple(field.name for field in fields(Options))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = suggest(str(value), allowed) or f"; write one of {', '.join(allowed)}"
        raise ConfigError(f"--{name} cannot be {value!r}{hint}")
