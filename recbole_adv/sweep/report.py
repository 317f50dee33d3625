"""What a sweep leaves behind: results.csv, best.yaml, summary.md and plots."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import yaml

from recbole_adv.sweep.ledger import Record
from recbole_adv.sweep.plan import Plan
from recbole_adv.sweep.plots import draw
from recbole_adv.sweep.state import Sweep
from recbole_adv.trainer.report import finite

_SHOWN = 10


def write(sweep: Sweep) -> dict[str, Any]:
    """Write everything that the records tell; returns the result of the sweep."""
    plan, ledger = sweep.plan, sweep.ledger
    records, seeds = ledger.records(), ledger.records("seeds")
    ranked = ledger.best(records, len(records))
    groups = _by_setting(plan, seeds)
    _table(records).to_csv(plan.folder / "results.csv", index=False)
    if seeds:
        _table(seeds).to_csv(plan.folder / "seeds.csv", index=False)
    best = _winner(plan, ranked, groups)
    if best is not None:
        _write(plan.folder / "best.yaml", _best_yaml(plan, best))
    _write(plan.folder / "summary.md", _summary(sweep, records, ranked, groups, best))
    draw(plan, records)
    counts = {status: sum(r.status == status for r in records) for status in _STATUS}
    return {
        "best": dict(best.setting) if best else None,
        "score": best.score if best else None,
        "metric": plan.metric,
        "repeated": [_repeated(records) for records in groups.values()],
        **counts,
        "sweep_dir": str(plan.folder),
    }


_STATUS = ("done", "pruned", "failed")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error (nan of a single value)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def _repeated(records: Sequence[Record]) -> dict[str, Any]:
    """One setting on several seeds: mean and standard error of its score and of the test metrics."""
    names = list(records[0].test or {})
    return {
        "setting": dict(records[0].setting),
        "seeds": len(records),
        "score": mean_and_error([record.score for record in records]),
        "test": {name: mean_and_error([(r.test or {})[name] for r in records]) for name in names},
    }


def _by_setting(plan: Plan, seeds: Sequence[Record]) -> dict[str, list[Record]]:
    """The finished repetitions by setting, the best mean score of the validation first."""
    groups: dict[str, list[Record]] = {}
    for record in seeds:
        if record.status == "done":
            groups.setdefault(record.id, []).append(record)

    def mean_score(name: str) -> float:
        return statistics.fmean(record.score for record in groups[name])

    return {name: groups[name] for name in sorted(groups, key=mean_score, reverse=plan.bigger)}


def _winner(
    plan: Plan, ranked: Sequence[Record], groups: Mapping[str, Sequence[Record]]
) -> Record | None:
    """The best trial; where there are repetitions, that with the best mean on the validation data."""
    first = next(iter(groups), None)
    found = [record for record in ranked if record.id == first]
    return (found or list(ranked[:1]) or [None])[0]


def _table(records: Sequence[Record]) -> pandas.DataFrame:
    """A row for each trial; lists and dicts in a cell are JSON."""
    rows = []
    for record in records:
        row = {"id": record.id, "status": record.status, "score": record.score}
        row |= {"seed": record.seed} if record.seed is not None else {}
        row |= {key: _cell(value) for key, value in record.setting.items()}
        row |= {f"valid {name}": value for name, value in record.valid.items()}
        row |= {f"test {name}": value for name, value in (record.test or {}).items()}
        row |= {"best_epoch": record.best_epoch, "epochs": record.epochs}
        rows.append({**row, "seconds": record.seconds, "reason": record.reason})
    return pandas.DataFrame(rows)


def _cell(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, type(None))) else json.dumps(finite(value))


def _best_yaml(plan: Plan, best: Record) -> str:
    settings = {"model": plan.model, "dataset": plan.dataset, **plan.fixed, **best.setting}
    settings.setdefault("seed", plan.seed)
    head = (
        f"# The best setting of the sweep in {plan.folder.name}: {plan.metric} {best.score:.4f} on the "
        "validation data.\n# recbole-adv run --config_files=best.yaml\n"
    )
    return head + yaml.safe_dump(finite(settings), sort_keys=False)


def _summary(sweep, records, ranked, groups, best) -> str:
    plan, options = sweep.plan, sweep.options
    count = {status: sum(r.status == status for r in records) for status in _STATUS}
    lines = [
        f"# Sweep of {plan.model.rpartition(':')[2]} on {plan.dataset}",
        "",
        f"{len(records)} trials: {count['done']} done, {count['pruned']} pruned, {count['failed']} "
        f"failed. Searched by {options.tool} ({options.algo}"
        f"{'' if options.scheduler == 'none' else ', ' + options.scheduler}), compared by {plan.metric} "
        f"on the validation data ({'higher' if plan.bigger else 'lower'} is better), seed {plan.seed}. "
        "The test data were not looked at in the search.",
        "",
    ]
    if best is not None:
        lines += ["## Best", "", *_best_lines(plan, best), ""]
    if groups:
        lines += [f"## Repeated on {options.seeds} other seeds", "", *_seed_lines(plan, groups), ""]
    if ranked:
        lines += [f"## The first {min(_SHOWN, len(ranked))}", "", *_rank_lines(plan, ranked), ""]
    failed = [record for record in records if record.status == "failed"]
    if failed:
        lines += ["## Failed", ""]
        lines += [
            f"- `{record.id}` ({_words(record.setting)}): {record.reason}" for record in failed
        ]
        lines.append("")
    return "\n".join(lines)


def _best_lines(plan: Plan, best: Record) -> list[str]:
    lines = [f"- {key}: `{value}`" for key, value in best.setting.items()]
    lines.append(f"- {plan.metric} {best.score:.4f} in epoch {best.best_epoch}")
    if len(best.schedule) > 1:
        steps = "; ".join(f"from epoch {epoch}: {_words(s)}" for epoch, s in best.schedule)
        lines.append(f"- it changed while it trained ({steps}); above is that of the best epoch")
    lines += ["", "`recbole-adv run --config_files=best.yaml` trains and tests it."]
    return lines


def _seed_lines(plan: Plan, groups: Mapping[str, Sequence[Record]]) -> list[str]:
    """Means and standard errors; the order is that of the validation."""
    found = [_repeated(records) for records in groups.values()]
    head = ["setting", "seeds", f"valid {plan.metric}", *(f"test {n}" for n in found[0]["test"])]
    rows = [
        [_words(each["setting"]), str(each["seeds"])]
        + [_figure(*figures) for figures in (each["score"], *each["test"].values())]
        for each in found
    ]
    return ["Mean ± standard error.", "", *_markdown(head, rows)]


def _figure(mean: float, error: float) -> str:
    return f"{mean:.4f}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}"


def _rank_lines(plan: Plan, ranked: Sequence[Record]) -> list[str]:
    keys = list(ranked[0].setting)
    rows = [
        [*(str(record.setting.get(key)) for key in keys), f"{record.score:.4f}"]
        + [str(record.best_epoch), f"{record.seconds:.1f}"]
        for record in ranked[:_SHOWN]
    ]
    return _markdown([*keys, plan.metric, "best epoch", "seconds"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in (head, ["---"] * len(head), *rows)
    ]


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.items())


def _write(file: Path, text: str) -> None:
    aside = file.with_suffix(".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
