"""Runs that differ only by their seed are one method; methods with the same test can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from recbole_adv.report.runs import RunFacts

NOT_A_SETTING = {"seed", "run_dir", "checkpoint_dir", "data_path", "save_user_metrics"} | {
    *("show_progress", "state", "use_gpu", "gpu_id", "worker", "checkpoint_interval"),
}
"""Keys in which runs of one method may differ: the seed, and what changes no result."""
_PROTOCOL = ("test_pool", "eval_mask", "mask_leaks", "drop_leaks")
_LONGEST = 64


@dataclass
class Method:
    """A configuration and its runs, one a seed.

    settings: what was given, without the keys of :data:`NOT_A_SETTING`; key: the same, comparable.
    """

    key: str
    settings: dict[str, Any]
    runs: list[RunFacts] = field(default_factory=list)
    label: str = ""

    @property
    def model(self) -> str:
        return self.runs[0].model

    def tested(self) -> list[RunFacts]:
        """The runs with test metrics."""
        return [run for run in self.runs if run.test]

    def values(self, metric: str) -> dict[Any, float]:
        """A test metric by seed."""
        return {run.seed: run.test[metric] for run in self.tested() if metric in run.test}


@dataclass
class Arena:
    """Methods that were tested on the same pairs by the same protocol, the baseline first.

    tag: `` [A]``, what tells it from others, if there are any.
    """

    dataset: str
    methods: list[Method]
    tag: str = ""

    @property
    def metrics(self) -> list[str]:
        """The names of all test metrics, in the order of the runs."""
        runs = [run for method in self.methods for run in method.tested()]
        return list(dict.fromkeys(name for run in runs for name in run.test))

    def test_name(self, test: str) -> str:
        """How a test is called in the data; ``test``: "" for the one of ``test_result``."""
        return test or str(self.methods[0].runs[0].split.get("test", "test"))

    @property
    def main_metric(self) -> str:
        """The metric that the first run was selected by, if it was tested by it."""
        wanted = self.methods[0].runs[0].valid_metric.rpartition("/")[2]
        whole = [name for name in self.metrics if "/" not in name]
        return wanted if wanted in whole or not whole else whole[0]

    @property
    def groupings(self) -> list[str]:
        """The names in ``eval_groups`` of the methods."""
        names = [n for m in self.methods for n in m.settings.get("eval_groups") or ()]
        return list(dict.fromkeys(map(str, names)))


def methods_of(runs: Sequence[RunFacts]) -> tuple[list[Method], list[str]]:
    """The methods in the order of their first runs, with labels, and what is to be said of the runs.

    Of two runs with the same settings, seed and test the first that was tested counts; with another
    test, since the data changed, they belong to two methods.
    """
    methods: list[Method] = []
    notes = []
    for run in sorted(runs, key=lambda run: not run.test):  # stable: tested ones first
        settings = {k: v for k, v in run.settings.items() if k not in NOT_A_SETTING}
        key = json.dumps(settings, sort_keys=True, default=repr)
        for method in methods:
            twins = [other for other in method.runs if other.seed == run.seed]
            if method.key == key and all(t.test_identity == run.test_identity for t in twins):
                break
        else:
            method, twins = Method(key, settings), []
            methods.append(method)
        if twins:
            notes.append(f"{run.name} has settings and seed of {twins[0].name} and is left out.")
        else:
            method.runs.append(run)
    place = {id(run): number for number, run in enumerate(runs)}
    for method in methods:
        method.runs.sort(key=lambda run: place[id(run)])
    methods.sort(key=lambda method: place[id(method.runs[0])])
    for method, label in zip(methods, _labels(methods)):
        method.label = label
    return methods, notes


def _labels(methods: Sequence[Method]) -> list[str]:
    """The model, with the settings in which methods of that model differ; numbered if that is long."""
    labels = []
    for method in methods:
        same = [other for other in methods if other.model == method.model]
        keys = differing(same)
        words = [_described(m, [key for key in keys if key in m.settings]) for m in same]
        place = same.index(method)
        fits = max(map(len, words)) <= _LONGEST and len(set(words)) == len(words)
        labels.append(words[place] if fits else f"{method.model} ({place + 1})")
    return labels


def _described(method: Method, keys: Sequence[str]) -> str:
    """``BPR + embedding_attack, preset=fgm``: a technique's keys without its name."""
    names = method.settings.get("techniques") or []
    named = "techniques" in keys and all(isinstance(name, str) for name in names)
    label = " + ".join([method.model, *(names if named else [])])
    parts = []
    for key in keys:
        if key == "techniques" and named:
            continue
        of = [n for n in names if isinstance(n, str) and key.startswith(f"{n}_")] if named else []
        parts.append(f"{key.removeprefix(f'{of[0]}_' if of else '')}={text(method.settings[key])}")
    return ", ".join([label, *parts])


def differing(methods: Sequence[Method]) -> list[str]:
    """The keys in which some methods differ, model first; one that is not given has its default."""
    keys = dict.fromkeys(key for method in methods for key in ("model", *method.settings))
    return [key for key in keys if len({text(m.settings.get(key, _DEFAULT)) for m in methods}) > 1]


_DEFAULT = object()


def text(value: Any) -> str:
    """A setting as it is written in YAML, on one line."""
    if value is None or isinstance(value, (bool, dict, list)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def arenas_of(methods: Sequence[Method]) -> list[Arena]:
    """Methods by what they were tested on; those without a test metric are in none."""
    arenas: list[Arena] = []
    for method in methods:
        if not method.tested():
            continue
        for arena in arenas:
            if _same_test(arena.methods[0], method):
                arena.methods.append(method)
                break
        else:
            arenas.append(Arena(method.runs[0].dataset, [method]))
    for number, arena in enumerate(arenas if len(arenas) > 1 else ()):
        arena.tag = f" [{ascii_uppercase[number]}]" if number < 26 else f" [{number + 1}]"
    return arenas


def _same_test(one: Method, other: Method) -> bool:
    """Whether two methods were tested on the same pairs, seed by seed or all on the same."""
    if one.runs[0].dataset != other.runs[0].dataset or _protocol(one) != _protocol(other):
        return False
    if not {m for r in one.tested() for m in r.test} & {m for r in other.tested() for m in r.test}:
        return False
    return bool(pairs_of_runs(one, other))


def pairs_of_runs(one: Method, other: Method) -> list[tuple[RunFacts, RunFacts]]:
    """Runs of the same seed and the same test; where all have one test, of any seeds.

    Only runs with the same seed are pairs of seeds; the others serve to compare users.
    """
    of_seed = {run.seed: run for run in other.tested()}
    pairs = [(run, of_seed[run.seed]) for run in one.tested() if run.seed in of_seed]
    if pairs:
        return [pair for pair in pairs if pair[0].test_identity == pair[1].test_identity]
    runs = [*one.tested(), *other.tested()]
    if len({run.test_identity for run in runs}) > 1:
        return []
    return [(run, mate) for run in one.tested() for mate in other.tested()]


def _protocol(method: Method) -> dict[str, Any]:
    """The keys that decide what is ranked in the test; what is not given is RecBole's default."""
    arguments: Mapping[str, Any] = method.settings.get("eval_args") or {}
    mode = arguments.get("mode", "full") if isinstance(arguments, Mapping) else "full"
    mode = mode.get("test", "full") if isinstance(mode, Mapping) else mode
    return {"mode": mode, **{key: method.settings.get(key) or None for key in _PROTOCOL}}
