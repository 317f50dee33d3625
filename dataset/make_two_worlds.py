"""Write ``dataset/two_worlds``: labelled impressions with a spurious signal that flips in the test.

240 users have a taste and a club, 120 items a genre and a cover. Whether a user likes an item
depends on taste and genre alone, in the same way in all three files. The colour of the cover only
follows: the items that a user is shown and likes wear the colour of his club with probability p,
those that he does not like with probability 1 - p, and p depends on the world:

    world 0   the old front page    p = 0.9    train, the first 85 %
    world 1   the new front page    p = 0.5    train, the last 15 %, and valid
    world 2   after a relaunch      p = 0.1    test

So the covers predict the labels of train as a whole better than taste and genre do, say nothing in
valid, and mislead in test. Rows stand in the order of time. The column world is a float, because
RecBole's feature models take every token column of ``.inter`` for an input.

    python dataset/make_two_worlds.py            writes the files
    python dataset/make_two_worlds.py --check    exits with 1 if they differ
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

N_USERS, N_ITEMS, N_KINDS = 240, 120, 6
SEED = 2020
# P(like) by the distance between taste and genre, which stand on a circle of six.
LIKE_PROB = np.array([0.88, 0.73, 0.27, 0.12, 0.27, 0.73])
MATCH_PROB = np.array([0.9, 0.5, 0.1])
# The world of each row.
PARTS = {"train": [0] * 10200 + [1] * 1800, "valid": [1] * 2000, "test": [2] * 3000}
COLOURS = ("red", "blue")


def files() -> dict[str, str]:
    """File name -> content, the same on every machine."""
    tables = {
        "two_worlds.user": _table("user_id:token taste:token club:token", _users()),
        "two_worlds.item": _table("item_id:token genre:token cover:token", _items()),
    }
    # RandomState, because numpy promises that its numbers never change.
    random, hour = np.random.RandomState(SEED), 0
    for part, world in PARTS.items():
        user, item, label = _impressions(random, np.array(world))
        rows = zip(user, item, label, world, range(hour, hour + len(world)))
        tables[f"two_worlds.{part}.inter"] = _table(
            "user_id:token item_id:token label:float world:float timestamp:float",
            [(f"u{u}", f"i{i}", y, w, time) for u, i, y, w, time in rows],
        )
        hour += len(world)
    return tables


def _kind(index):
    """Taste of a user or genre of an item, 0..5; every colour has each equally often."""
    return index % N_KINDS


def _colour(index):
    """Club of a user or cover of an item, 0 or 1."""
    return index // N_KINDS % 2


def _users() -> list[tuple[str, str, str]]:
    return [(f"u{k}", f"t{_kind(k)}", COLOURS[_colour(k)]) for k in range(N_USERS)]


def _items() -> list[tuple[str, str, str]]:
    return [(f"i{k}", f"g{_kind(k)}", COLOURS[_colour(k)]) for k in range(N_ITEMS)]


def _impressions(random: np.random.RandomState, world: np.ndarray) -> tuple[np.ndarray, ...]:
    """User, item and label of each row; first the genre and the label are drawn, then the cover."""
    n_rows = len(world)
    user, genre = random.randint(N_USERS, size=n_rows), random.randint(N_KINDS, size=n_rows)
    label = random.random_sample(n_rows) < LIKE_PROB[(genre - _kind(user)) % N_KINDS]
    prob = np.where(label, MATCH_PROB[world], 1 - MATCH_PROB[world])
    differs = random.random_sample(n_rows) >= prob
    cover = (_colour(user) + differs) % 2
    copy = random.randint(N_ITEMS // (2 * N_KINDS), size=n_rows)
    return user, genre + N_KINDS * (cover + 2 * copy), label.astype(int)


def _table(header: str, rows: list[tuple]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in [header.split(), *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(arguments).check
    folder = Path(__file__).parent / "two_worlds"
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
