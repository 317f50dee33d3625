"""An unpickler that calls nothing but the constructors it is given.

Every other global becomes an inert :class:`Name`. That is checked where something is called, built
or filled, not only where it is named. It is the standard library's unpickler in Python with those
opcodes replaced: the one in C sets attributes of any object that a file points it at.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

from recbole_adv.errors import CheckpointError


class Name:
    """Stands for a class or a function that is not imported."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to do what it stands for."""
        refuse(self)


class Instance:
    """Stands for an object of a class that is not imported; ``state`` would have filled it."""

    def __init__(self, kind: Any) -> None:
        self.kind = str(kind)
        self.state: Any = None


def refuse(function: Any) -> NoReturn:
    """Raise the CheckpointError of a file that would call ``function``."""
    name = function if isinstance(function, (Name, str)) else repr(function)[:80]
    raise CheckpointError(
        f"refused: it would call {name} when read; do not trust the file's source"
    )


class RestrictedUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Calls only ``constructors()``, by full name; fills only lists, dicts, sets and stand-ins.

    A constructor must be harmless whatever its arguments.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(
        pickle._Unpickler.dispatch  # type: ignore[attr-defined]
    )
    stack: list[Any]
    metastack: list[list[Any]]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    @staticmethod
    def constructors() -> Mapping[str, Callable]:
        """What a file may call."""
        return {}

    def find_class(self, module: str, name: str) -> Any:
        """One of the constructors, or a Name."""
        module, name = NAME_MAPPING.get((module, name), (module, name))
        module = IMPORT_MAPPING.get(module, module)  # protocols 0 to 2 use the names of Python 2
        return self.constructors().get(f"{module}.{name}") or Name(module, name)

    def _make(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        if kwargs or not any(function is known for known in self.constructors().values()):
            refuse(function)
        return function(*args)

    def _new(self, kind: Any, args: Any, kwargs: Any = None) -> Any:
        if isinstance(kind, Name) and args == () and not kwargs:
            return Instance(kind)
        return self._make(kind, args, kwargs)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._new(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._new(self.stack[-1], args, kwargs)

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        refuse(self.find_class(module, name))

    def load_obj(self) -> None:
        refuse((self.pop_mark() or ["nothing"])[0])

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Instance):
            built.state = state
        elif type(built) is not OrderedDict:  # whose state is not data
            refuse(f"{type(built).__name__}.__setstate__")

    def load_binpersid(self) -> None:
        key = self.stack.pop()
        if not (isinstance(key, tuple) and key and key[0] in ("storage", b"storage")):
            refuse("persistent_load")  # torch may write a file for a "module"
        self.stack.append(self.persistent_load(key))


def _only_into(kinds: tuple[type, ...], above: int | None, fill: Callable) -> Callable:
    """The opcode ``fill``, if what it fills, ``above`` places down or below the mark, may be."""

    def load(self: RestrictedUnpickler) -> None:
        target = self.metastack[-1][-1] if above is None else self.stack[-1 - above]
        if type(target) not in kinds:
            refuse(f"a method of {type(target).__name__}")
        fill(self)

    return load


def _restrict(dispatch: dict[int, Callable]) -> None:
    """Replace in the table of opcodes all that call, build or fill; drop those nobody needs."""
    for name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD", "BINPERSID"):
        dispatch[getattr(pickle, name)[0]] = getattr(RestrictedUnpickler, f"load_{name.lower()}")
    for name in ("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"):
        del dispatch[getattr(pickle, name)[0]]
    containers: tuple[tuple[str, tuple[type, ...], int | None], ...] = (
        ("APPEND", (list,), 1),
        ("APPENDS", (list,), None),
        ("SETITEM", (dict, OrderedDict), 2),
        ("SETITEMS", (dict, OrderedDict), None),
        ("ADDITEMS", (set,), None),
    )
    for name, kinds, above in containers:
        code = getattr(pickle, name)[0]
        dispatch[code] = _only_into(kinds, above, dispatch[code])


_restrict(RestrictedUnpickler.dispatch)
