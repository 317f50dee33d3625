"""Write ``dataset/checkerboard``, the smallest data that every correct recommender must learn.

60 users and 60 items stand on a checkerboard: an even user likes the even items, an odd user the
odd ones. Each user has clicked on 20 of the 30 items of his colour, in random order; the other 10
he would like as well. Shape and size of the items, the age group of the users and the knowledge
graph are independent of the colour, so only the clicks tell it.

    python dataset/make_checkerboard.py            writes the files
    python dataset/make_checkerboard.py --check    exits with 1 if they differ
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

N_USERS = N_ITEMS = 60
N_CLICKS = 20
SEED = 2020


def files() -> dict[str, str]:
    """File name -> content, the same on every machine."""
    users, items = range(N_USERS), range(N_ITEMS)
    shape = [("round", "square", "flat")[item // 2 % 3] for item in items]
    size = [("small", "large")[item // 6 % 2] for item in items]
    return {
        "checkerboard.inter": _table(
            "user_id:token item_id:token timestamp:float",
            [row for user in users for row in _clicks(user)],
        ),
        "checkerboard.user": _table(
            "user_id:token age_group:token", [(f"u{user}", f"age{user // 2 % 4}") for user in users]
        ),
        "checkerboard.item": _table(
            "item_id:token shape:token", [(f"i{item}", shape[item]) for item in items]
        ),
        "checkerboard.link": _table(
            "item_id:token entity_id:token", [(f"i{item}", f"e{item}") for item in items]
        ),
        "checkerboard.kg": _table(
            "head_id:token relation_id:token tail_id:token",
            [(f"e{item}", "has_shape", shape[item]) for item in items]
            + [(f"e{item}", "has_size", size[item]) for item in items],
        ),
    }


def _clicks(user: int) -> list[tuple[str, str, int]]:
    """One click an hour, in random order."""
    # RandomState, because numpy promises that its numbers never change.
    random = np.random.RandomState(SEED + user)
    chosen = random.permutation(np.arange(user % 2, N_ITEMS, 2))[:N_CLICKS]
    return [(f"u{user}", f"i{item}", 3600 * hour + user) for hour, item in enumerate(chosen)]


def _table(header: str, rows: list[tuple]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in [header.split(), *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(arguments).check
    folder = Path(__file__).parent / "checkerboard"
    folder.mkdir(exist_ok=True)
    differing = []
    for name, text in files().items():
        path, data = folder / name, text.encode()
        if check and not (path.is_file() and path.read_bytes() == data):
            differing.append(name)
        if not check:
            path.write_bytes(data)
    print(f"{folder}: {'differs in ' + ', '.join(differing) if differing else 'as generated'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
