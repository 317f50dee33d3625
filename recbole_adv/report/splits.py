"""How the data of runs were split, how the parts differ, and what leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recbole_adv.report.blocks import Block, Table, Text
from recbole_adv.report.methods import Arena, Method, text
from recbole_adv.report.runs import RunFacts

_TERMS = (
    "Coverage is the share of all items that a part shows; KL the divergence of its item popularity "
    "from that of training, and from uniform, in nats; cold rows have a user or item without a training row."
)


def split_blocks(methods: Sequence[Method], arenas: Sequence[Arena]) -> list[Block]:
    """The statistics of each test that methods share; of the first run, where seeds split anew."""
    firsts = [(arena.methods[0].runs[0], arena.tag) for arena in arenas]
    blocks: list[Block] = []
    for run, of in firsts or [(methods[0].runs[0], "")]:
        if run.split.get("parts"):
            blocks += _of_run(run, of)
    if not blocks:
        return []
    several = any(len({run.test_identity for run in method.tested()}) > 1 for method in methods)
    if several:
        blocks.append(
            Text(
                "Each seed has a split of its own; the figures are those of the first run. A split that "
                "is the same for all seeds needs shift_seed, or files (benchmark_filename)."
            )
        )
    return [*blocks, Text(_TERMS)]


def _of_run(run: RunFacts, of: str) -> list[Block]:
    split = run.split
    settings = split.get("settings")
    how = "by RecBole's eval_args"
    if isinstance(settings, dict):
        given = {k.removeprefix("shift_"): v for k, v in settings.items() if v is not None}
        how = "by " + ", ".join(f"{key} {text(value)}" for key, value in given.items())
    head = [
        "part",
        "rows",
        "users",
        "items",
        "coverage",
        "KL to train",
        "KL to uniform",
        "cold rows",
    ]
    rows = [[name, *_figures(part)] for name, part in split["parts"].items()]
    blocks: list[Block] = [
        Text(f"Split{of} {how}."),
        Table(f"Parts of {run.dataset}{of}", head, rows),
    ]
    leaks = split.get("leaks") or []
    found = [count for count in leaks if count.get("rows")]
    if not found:
        return [*blocks, Text("Leak check: no user-item pair is in two parts.")]
    rows = [
        [c["part"], c["in"], str(c["rows"]), str(c["of"]), f"{100 * c['rows'] / c['of']:.1f} %"]
        for c in found
    ]
    head = ["part", "has pairs of", "rows", "of", "share"]
    blocks.append(Table(f"Leaks{of}", head, rows, frozenset({0, 1})))
    return [*blocks, _against(split)]


def _figures(part: dict[str, Any]) -> list[str]:
    shares = (part.get("coverage"), part.get("kl_train"), part.get("kl_uniform"))
    return [
        *(str(part.get(key, "–")) for key in ("rows", "users", "items")),
        *("–" if share is None else f"{share:.3f}" for share in shares),
        str(part.get("cold_rows", "–")),
    ]


def _against(split: dict[str, Any]) -> Block:
    if split.get("dropped"):
        return Text(f"drop_leaks removed {split['dropped']} rows.")
    if split.get("masked"):
        return Text("mask_leaks masks these pairs in the ranking: they count as missed.")
    return Text(
        "Nothing is done against these leaks: a look-up of the earlier part finds them. mask_leaks or "
        "drop_leaks acts.",
        warning=True,
    )
