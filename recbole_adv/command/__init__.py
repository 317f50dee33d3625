"""The commands of ``recbole-adv``, one module each.

A module has ``add(commands)``, which adds its parser to those of argparse and sets ``function``, a
callable ``(options, settings)`` with the parsed flags and the arguments ``--key=value`` that are
left. What a command needs is imported when it runs.
"""

NAMES = (
    *("run", "sweep", "models", "config", "audit"),
    *("robustness", "poison", "leak_probe", "stability"),
    *("data", "plot", "report"),
)
"""In the order in which ``--help`` lists them."""
