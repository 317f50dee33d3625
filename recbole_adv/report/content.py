"""What is said about runs: the sections of a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from recbole_adv.errors import ConfigError, suggest
from recbole_adv.report.blocks import Block, Details, Document, Section, Table, Text
from recbole_adv.report.curves import curve_sections
from recbole_adv.report.methods import Arena, Method, arenas_of, differing, methods_of, text
from recbole_adv.report.results import comparison_blocks, group_blocks, metric_blocks
from recbole_adv.report.runs import RunFacts
from recbole_adv.report.splits import split_blocks

_DEFAULT = "(default)"


def document(runs: Sequence[RunFacts], notes: Sequence[str], metrics: Sequence[str]) -> Document:
    """The report of some runs.

    notes: what was found while reading them; metrics: the names to compare by, none for the metric
    that the first run was selected by.
    """
    _shorten_names(runs)
    methods, of_runs = methods_of(runs)
    arenas = arenas_of(methods)
    _check_metrics(metrics, arenas)
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    sections = [
        Section("Results", _warnings(runs, arenas, [*notes, *of_runs]) + metric_blocks(arenas)),
        Section("Comparison", comparison_blocks(arenas, metrics)),
        Section("Groups", group_blocks(arenas, metrics)),
        Section("Settings", _settings(methods)),
        Section("Runs", [_runs_table(methods)]),
        *curve_sections(methods),
        Section("Data and split", split_blocks(methods, arenas)),
    ]
    what = f"{_count(len(runs), 'run')} of {_count(len(methods), 'method')}"
    lead = f"{what}, {datetime.now():%Y-%m-%d %H:%M}. Runs that differ only by their seed are one method."
    return Document(", ".join(datasets), lead, [s for s in sections if s.blocks])


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _shorten_names(runs: Sequence[RunFacts]) -> None:
    """Call each run by its path below what all have in common."""
    folders = [str(run.folder.resolve()) for run in runs]
    common = os.path.commonpath(folders) if len(folders) > 1 else os.path.dirname(folders[0])
    for run, folder in zip(runs, folders):
        run.name = Path(os.path.relpath(folder, common)).as_posix()


def _check_metrics(metrics: Sequence[str], arenas: Sequence[Arena]) -> None:
    known = [name for arena in arenas for name in arena.metrics]
    for name in metrics:
        if name.lower() not in map(str.lower, known):
            raise ConfigError(
                f"no run was tested by --metric {name!r}{suggest(name, known) or ''}; write one of "
                f"{', '.join(dict.fromkeys(n for n in known if '/' not in n)) or 'none'}"
            )


def _warnings(runs: Sequence[RunFacts], arenas: Sequence[Arena], notes) -> list[Block]:
    found: list[Block] = [Text(note) for note in notes]
    unfinished = [run for run in runs if run.result is None]
    if unfinished:
        names = ", ".join(
            run.name + (f" ({run.reason})" if run.reason else "") for run in unfinished
        )
        found.append(Text(f"Unfinished, and in no mean or comparison: {names}.", warning=True))
    if len(arenas) > 1:
        which = "; ".join(
            f"{arena.tag.strip()} " + ", ".join(method.label for method in arena.methods)
            for arena in arenas
        )
        found.append(
            Text(
                "These runs were not all tested on the same: data sets, test pairs, what is ranked or "
                f"metrics differ. Only methods of one letter can be compared: {which}.",
                warning=True,
            )
        )
    if not arenas:
        found.append(Text("No run has test metrics yet."))
    return found


def _settings(methods: Sequence[Method]) -> list[Block]:
    keys = list(dict.fromkeys(key for method in methods for key in ("model", *method.settings)))
    different = differing(methods)
    same = [key for key in keys if key not in different]
    blocks: list[Block] = []
    words = frozenset(range(len(methods) + 1))
    if len(methods) > 1:
        rows = [[key, *(_setting(method, key) for method in methods)] for key in different]
        rows.append(["seed", *(_seeds(method) for method in methods)])
        head = ["key", *(method.label for method in methods)]
        blocks.append(Table("Settings that differ between methods", head, rows, words))
    rows = [[key, _setting(methods[0], key)] for key in same]
    if len(methods) == 1:
        rows.append(["seed", _seeds(methods[0])])
        return [Table("Settings that were given", ["key", "value"], rows, frozenset({0, 1}))]
    common = Table("Settings that all share", ["key", "value"], rows, frozenset({0, 1}))
    return [*blocks, Details(f"{_count(len(rows), 'setting')} that all share", [common])]


def _setting(method: Method, key: str) -> str:
    return text(method.settings[key]) if key in method.settings else _DEFAULT


def _seeds(method: Method) -> str:
    return ", ".join(str(run.seed) for run in method.runs)


def _runs_table(methods: Sequence[Method]) -> Table:
    head = ["run", "method", "seed", "state", "epochs", "best epoch", "best validation"]
    rows = [_run_row(method, run) for method in methods for run in method.runs]
    metrics = {run.valid_metric for method in methods for run in method.runs}
    caption = "Runs" + (f"; validation by {metrics.pop()}" if len(metrics) == 1 else "")
    return Table(caption, [*head, "s/epoch"], rows, frozenset({0, 1, 3}))


def _run_row(method: Method, run: RunFacts) -> list[str]:
    curves = run.curves.curves if run.curves else {}
    score = (run.result or {}).get("best_valid_score")
    epochs, values = curves.get("valid_score", ([], []))
    if run.result is None and values:
        score = _best_so_far(run, values)
    best = next((str(e) for e, v in zip(epochs, values) if v == score), "–")
    seconds = sorted(curves.get("train_seconds", ([], []))[1])
    return [
        *(run.name, method.label, str(run.seed)),
        *("ended" if run.result is not None else "unfinished",),
        *(str(len(run.curves.epochs)) if run.curves else "0", best),
        f"{score:.4f}" if isinstance(score, (int, float)) else "–",
        f"{seconds[len(seconds) // 2]:.2f}" if seconds else "–",
    ]


def _best_so_far(run: RunFacts, values: Sequence[float]) -> float | None:
    from recbole_adv.evaluation.keys import bigger_is_better

    known = [value for value in values if value == value]
    if not known:
        return None
    return max(known) if bigger_is_better(run.valid_metric) else min(known)
