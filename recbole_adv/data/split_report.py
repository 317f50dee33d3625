"""How the parts of a split differ: sizes, coverage, popularity; for the log and for ``split.json``."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd

from recbole_adv.data.leak_check import later_rows


def popularity_kl(count: np.ndarray, reference: np.ndarray) -> float:
    """KL(p || q) in nats of item popularities: p = count / n, q = (reference + 1) / (m + I).

    The one added to each reference count makes it finite for an item that training never shows.
    A sample of n rows from q itself is expected to have about (I - 1) / 2n.

    count, reference: [I] interactions of each item.
    """
    p = count[count > 0] / count.sum()
    q = ((reference + 1) / (reference.sum() + len(reference)))[count > 0]
    return float((p * np.log(p / q)).sum())


def fingerprint_of(part) -> str:
    """The same for the same user-item pairs, in whatever order and with whatever numbers."""
    rows, name = part.inter_feat, part.field2id_token
    user, item = (
        pd.util.hash_array(name[field].astype(str).astype(object))[rows[field].numpy()]
        for field in (part.uid_field, part.iid_field)
    )
    pair = pd.util.hash_array(np.uint64(31) * user + item)
    return f"{int(pair.sum(dtype=np.uint64)):016x}"  # a sum forgets the order of the rows


def statistics(parts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of each part that has rows: rows, users, items, coverage (the share of all items), KL of its
    item popularity to that of training and to uniform, and rows whose user or item training lacks.
    (Users and items of the data, of_users and of_items, are those of all files and parts.)

    parts: RecBole's datasets by name, ``train`` among them.
    """
    train = parts["train"]
    n_users, n_items = train.user_num, train.item_num - 1
    count = {name: _counts(part) for name, part in parts.items() if len(part)}
    if "train" not in count:
        return {}
    trained_user, trained_item = count["train"]
    uniform = np.zeros(n_items)
    result = {}
    for name, (of_user, of_item) in count.items():
        user, item = (parts[name].inter_feat[f].numpy() for f in (train.uid_field, train.iid_field))
        result[name] = {
            "rows": len(user),
            "users": int((of_user > 0).sum()),
            "of_users": n_users - 1,
            "items": int((of_item > 0).sum()),
            "of_items": n_items,
            "coverage": float((of_item > 0).mean()),
            "kl_train": None if name == "train" else popularity_kl(of_item, trained_item),
            "kl_uniform": popularity_kl(of_item, uniform),
            "cold_rows": int(((trained_user[user] == 0) | (trained_item[item - 1] == 0)).sum()),
        }
    return result


def _counts(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each user [U], and of each item without the padding [I]."""
    user = dataset.inter_feat[dataset.uid_field].numpy()
    item = dataset.inter_feat[dataset.iid_field].numpy()
    of_item = np.bincount(item, minlength=dataset.item_num)[1:]
    return np.bincount(user, minlength=dataset.user_num), of_item


def as_table(of_part: Mapping[str, Mapping[str, float]]) -> str:
    """The statistics as lines of text."""
    titles = {
        "rows": "rows",
        "users": "users",
        "items": "items",
        "coverage": "coverage",
        "kl_train": "KL to train",
        "kl_uniform": "KL to uniform",
        "cold_rows": "cold rows",
    }
    frame = pd.DataFrame.from_dict(dict(of_part), orient="index", columns=None)
    frame = frame.reindex(columns=list(titles)).rename(columns=titles)
    frame["KL to train"] = frame["KL to train"].astype(float)
    return frame.to_string(na_rep="", float_format="%.3f")


def describe(plan, notes: Mapping[str, Mapping[str, float]]) -> str:
    """How the data were split, in a sentence."""
    settings = dict(plan.settings)
    kind = settings.pop("shift_split")
    what = ", ".join(
        f"{k.removeprefix('shift_')} {v}" for k, v in settings.items() if v is not None
    )
    text = f"split by shift_split: {kind} ({what}), not by eval_args"
    for name, note in notes.items():
        text += f"; {name}: n_max {note['n_max']:.4g}"
        if note["items_at_limit"]:
            text += (
                f", {note['items_at_limit']:.0f} items have fewer interactions to give than their "
                "exposure asks for"
            )
    return text


def log_later_rows(config, parts, split, sequential: bool) -> dict[str, dict[str, int]]:
    """Training rows later than evaluated ones, where the order of time is part of the protocol.

    parts: datasets by name; split: None where RecBole split.   Returns the counts by part.
    """
    if split is not None:
        by_time = sequential or split.settings["shift_split"] == "time"
    else:
        by_time = config["benchmark_filename"] or config["eval_args"].get("order") == "TO"
    later = {}
    drawn = split is not None and not sequential
    for name, part in parts.items():
        # The rows of an id part of a temporal split are drawn from all of its past.
        if name == "train" or (drawn and name.endswith("_id")):
            continue
        counted = later_rows(parts["train"], part) if by_time else None
        if counted is not None:
            later[name] = counted
    found = [
        f"{c['rows']} than the earliest row of {name} ({c['of_own_user']} than that of their own user)"
        for name, c in later.items()
        if c["rows"]
    ]
    if found:
        which = "; ".join(found)
        getLogger().info("time: of %d training rows are later: %s", len(parts["train"]), which)
    return later


def log_leaks(config, counts: list[dict], sequential: bool, n_dropped: int) -> None:
    """The leaks in one sentence: a warning, if nothing is done against them and they are one."""
    found = [
        f"{c['rows']} of {c['of']} rows of {c['part']} ({100 * c['rows'] / c['of']:.1f} %) are "
        f"user-item pairs of {c['in']}"
        for c in counts
        if c["rows"]
    ]
    logger = getLogger()
    if not found:
        logger.info("leak check: no user-item pair is in two parts")
    elif n_dropped:
        logger.info("leak check: %s; drop_leaks removed %d rows", "; ".join(found), n_dropped)
    elif config["mask_leaks"]:
        logger.info("leak check: %s; mask_leaks masks them in the ranking", "; ".join(found))
    elif sequential:
        logger.info(
            "repeated interactions: %s; a sequence may repeat an item (drop_leaks: True leaves them "
            "out of the evaluation)",
            "; ".join(found),
        )
    else:
        full = set(config["eval_args"]["mode"].values()) == {"full"}
        mask = "mask_leaks: True masks them in the ranking, " if full else ""
        logger.warning(
            "leak: %s; a look-up of the earlier part finds them; %sdrop_leaks: True removes them",
            *("; ".join(found), mask),
        )
