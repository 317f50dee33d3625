"""What training data tell of validation and test: common user-item pairs, and later rows.

RecBole's ranking of all items masks a user's items of earlier parts, but not one that is a target
of this part, too: a look-up table of the training pairs then finds it. A pair is one number,
user * n_items + item, and a part is compared with the earlier ones by a search in sorted numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_adv.errors import ConfigError, DataError


def pairs_of(dataset) -> np.ndarray:
    """[N] int64, the user-item pair of each row; of a sequence's row, the target's."""
    rows = dataset.inter_feat
    user, item = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
    return user.astype(np.int64) * dataset.item_num + item


def known_pairs(dataset) -> np.ndarray:
    """The pairs of a part, sorted, once each; with those of the items that only sequences hold.

    RecBole makes a sequence of the targets of earlier rows, and of a first item. One that a file of
    ``benchmark_filename`` holds may have any.
    """
    pairs, rows = pairs_of(dataset), dataset.inter_feat
    length = getattr(dataset, "item_list_length_field", None)
    history = getattr(dataset, "item_id_list_field", None)
    if length in rows and history in rows:
        if dataset.config["benchmark_filename"] is None:
            rows = rows[np.flatnonzero(rows[length] == 1)]  # no other row's sequence is read
        user, items = rows[dataset.uid_field].numpy(), rows[history].numpy()
        held = user.astype(np.int64)[:, None] * dataset.item_num + items
        pairs = np.concatenate([pairs, held[items > 0]])  # 0 fills a sequence up
    pairs = np.sort(pairs)  # np.unique of numpy 2.3 takes a hash table, and 100 times as long
    return pairs[np.diff(pairs, prepend=-1) > 0]


def among(pairs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[N] bool: the pairs that are among the sorted ``known``.

    They are looked for in order, which spares the processor 30 times the waiting for memory.
    """
    found = np.zeros(len(pairs), dtype=bool)
    if len(known):
        order = np.argsort(pairs)
        place = np.searchsorted(known, pairs[order]).clip(max=len(known) - 1)
        found[order] = known[place] == pairs[order]
    return found


def earlier_than(name: str, names: list[str]) -> list[str]:
    """The parts whose pairs a part must not repeat: train, and before a test every validation."""
    valids = [other for other in names if other.startswith("valid")]
    return ["train"] if name.startswith("valid") else ["train", *valids]


def find_leaks(parts: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The rows of each part whose pair is in an earlier one.

    parts: RecBole's datasets by name, train first.
    Returns [N] bool for each part but train, and counts: part, in, rows, of.
    """
    known = {name: known_pairs(part) for name, part in parts.items()}
    leaked, counts = {}, []
    for name in list(parts)[1:]:
        pairs = pairs_of(parts[name])
        found = {n: among(pairs, known[n]) for n in earlier_than(name, list(parts))}
        leaked[name] = np.any(list(found.values()), axis=0)
        for other, mask in found.items():
            counts.append({"part": name, "in": other, "rows": int(mask.sum()), "of": len(pairs)})
    return leaked, counts


def drop_rows(parts: Mapping[str, Any], leaked: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parts without their leaked rows; a DataError if one is then empty."""
    kept = dict(parts)
    for name, mask in leaked.items():
        if not mask.any():
            continue
        if mask.all():
            raise DataError(
                f"drop_leaks leaves no row of {name}: all {len(mask)} are user-item pairs of an "
                "earlier part; split the data otherwise, or write drop_leaks: False"
            )
        kept[name] = take_rows(parts[name], torch.from_numpy(~mask).nonzero().squeeze(1))
    return kept


def take_rows(dataset, index: torch.Tensor):
    """A part of a built dataset; index: [n] int64 rows."""
    rows = dataset.inter_feat
    if type(rows) is not Interaction:  # one of ours, which takes rows by a tensor itself
        return dataset.copy(rows[index])
    columns = rows.interaction.items()
    return dataset.copy(Interaction({name: value[index] for name, value in columns}))


def mask_pairs(loader, pairs: np.ndarray, topk: list[int]) -> None:
    """Mask pairs in a part's ranking of all items, in which they stay targets.

    They can then never be hit and count as missed.

    loader: RecBole's FullSortEvalDataLoader; pairs: [n] int64, as of :func:`pairs_of`.
    """
    n_items = loader._dataset.item_num
    hidden = np.unique(pairs)
    users, start = np.unique(hidden // n_items, return_index=True)
    for user, items in zip(users, np.split(hidden % n_items, start[1:])):
        history = torch.cat([loader.uid2history_item[user], torch.from_numpy(items)])
        loader.uid2history_item[user] = history
        if n_items - 1 - len(history) < max(topk):
            name = loader._dataset.id2token(loader.uid_field, int(user))
            raise ConfigError(
                f"mask_leaks leaves {n_items - 1 - len(history)} items to rank for user {name!r}, "
                f"fewer than topk {max(topk)}, so that masked ones would be in his list; write a "
                "smaller topk, or drop_leaks: True"
            )


def later_rows(train, part) -> dict[str, int] | None:
    """Training rows later than the earliest row of ``part``, and later than that of their own user.

    None without timestamps. RecBole stores them as float32: Unix seconds are rounded to 128.
    """
    field = train.time_field
    if field is None or any(field not in x.inter_feat or not len(x) for x in (train, part)):
        return None
    time, other = (x.inter_feat[field].numpy().reshape(len(x), -1)[:, 0] for x in (train, part))
    first = np.full(train.user_num, np.inf)
    np.minimum.at(first, part.inter_feat[train.uid_field].numpy(), other)
    own = first[train.inter_feat[train.uid_field].numpy()]
    return {"rows": int((time > other.min()).sum()), "of_own_user": int((time > own).sum())}
