"""Read the checkpoints that stock RecBole writes, which pickle classes, without running any of them.

The pickle is read by an interpreter that calls nothing but the few constructors of
``_constructors``; every other global becomes an inert :class:`Name`. That is checked where something
is called, built or filled, not only where it is named. It is the standard library's unpickler in
Python with those opcodes replaced: the C one sets attributes of any object a file points it at.
"""

from __future__ import annotations

import functools
import pickle
import types
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from scipy import sparse

from recbole_adv.errors import CheckpointError

_ENUMS = ("ModelType", "InputType", "EvaluatorType")


class Name:
    """Stands for a class or a function that is not imported."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be what it stands for."""
        _refuse(self)


class Instance:
    """Stands for an object of a class that is not imported, with the state that would have filled it."""

    def __init__(self, kind: Any, state: Any = None) -> None:
        self.kind, self.state = str(kind), state


def read(file: BinaryIO, map_location: Any) -> Any:
    """The tree in ``file`` as Python data: the Config as its settings, a class as a string.

    Raises CheckpointError, naming the callable, for a file that would call one when unpickled.
    """
    restricted: Any = types.SimpleNamespace(
        __name__=__name__, Unpickler=RestrictedUnpickler, load=_load
    )
    try:
        tree = torch.load(
            file, map_location, pickle_module=restricted, weights_only=False, mmap=False
        )
    except CheckpointError:
        raise
    except Exception as error:  # bytes that are no pickle raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"it is no checkpoint, or a damaged one ({reason:.160})") from error
    if isinstance(tree, dict) and isinstance(tree.get("other_parameter"), dict):
        others = tree["other_parameter"]
        tree["other_parameter"] = {k: v for k, v in others.items() if not _is_layer(v)}
    return _plain(tree, "")


def _load(file: BinaryIO, **kwargs: Any) -> Any:
    return RestrictedUnpickler(file, **kwargs).load()


def _refuse(function: Any) -> NoReturn:
    name = function if isinstance(function, (Name, str)) else repr(function)[:80]
    raise CheckpointError(
        f"refused: it would call {name} when read; do not trust the file's source"
    )


class RestrictedUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Calls only our constructors, fills only lists, dicts, sets and stand-ins."""

    dispatch: dict[int, Callable] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        """One of our constructors or torch's dtypes, or a Name."""
        module, name = NAME_MAPPING.get((module, name), (module, name))
        module = IMPORT_MAPPING.get(module, module)  # as Python 2 and protocols 0 to 2 name it
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return _constructors().get(f"{module}.{name}") or Name(module, name)

    def _call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        if kwargs or not any(function is known for known in _constructors().values()):
            _refuse(function)
        return function(*args)

    def _new(self, kind: Any, args: Any, kwargs: Any = None) -> Any:
        if isinstance(kind, Name) and args == () and not kwargs:
            return Instance(kind)
        return self._call(kind, args, kwargs)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._new(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._new(self.stack[-1], args, kwargs)

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        _refuse(self.find_class(module, name))

    def load_obj(self) -> None:
        _refuse((self.pop_mark() or ["nothing"])[0])

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Instance):
            built.state = state
        elif type(built) is not OrderedDict and not isinstance(built, np.dtype):
            _refuse(f"{type(built).__name__}.__setstate__")  # of those two, the state is no data

    def load_binpersid(self) -> None:
        key = self.stack.pop()
        if not (isinstance(key, tuple) and key and key[0] in ("storage", b"storage")):
            _refuse("persistent_load")  # torch writes a file for a "module"
        self.stack.append(self.persistent_load(key))

    for _name in ("reduce", "newobj", "newobj_ex", "inst", "obj", "build", "binpersid"):
        dispatch[getattr(pickle, _name.upper())[0]] = locals()[f"load_{_name}"]
    for _name in ("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"):
        del dispatch[getattr(pickle, _name)[0]]


def _only_into(kinds: tuple[type, ...], above: int | None, fill: Callable) -> Callable:
    """``fill``, an opcode that adds to a container ``above`` places down (None: below the mark)."""

    def load(self: RestrictedUnpickler) -> None:
        target = self.metastack[-1][-1] if above is None else self.stack[-1 - above]
        if type(target) not in kinds:
            _refuse(f"a method of {type(target).__name__}")
        fill(self)

    return load


for _code, _kinds, _above in (
    (pickle.APPEND, (list,), 1),
    (pickle.APPENDS, (list,), None),
    (pickle.SETITEM, (dict, OrderedDict), 2),
    (pickle.SETITEMS, (dict, OrderedDict), None),
    (pickle.ADDITEMS, (set,), None),
):
    _fill = RestrictedUnpickler.dispatch[_code[0]]
    RestrictedUnpickler.dispatch[_code[0]] = _only_into(_kinds, _above, _fill)


@functools.cache
def _constructors() -> dict[str, Callable]:
    """All that a checkpoint may call; each is harmless whatever the arguments."""
    from recbole.utils import enum_type

    known: dict[str, Callable] = {
        "_codecs.encode": _bytes,
        "builtins.getattr": _enum_member,
        "builtins.set": set,
        "collections.OrderedDict": OrderedDict,
        "numpy.dtype": _dtype,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_tensor_v2": _tensor,
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known |= {f"{core}.scalar": _scalar, f"{core}._reconstruct": _array}
    return known | {f"{enum_type.__name__}.{name}": getattr(enum_type, name) for name in _ENUMS}


def _tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> torch.Tensor:
    return torch._utils._rebuild_tensor_v2(
        storage, offset, size, stride, False, OrderedDict(), metadata
    )


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.Tensor:
    return data


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _enum_member(kind: Any, name: str) -> Any:
    if not any(kind is known for name, known in _constructors().items() if name.endswith(_ENUMS)):
        _refuse(Name("builtins", "getattr"))
    return kind[name]


def _dtype(code: str, *_: Any) -> np.dtype:
    if not (isinstance(code, str) and code[:1] in tuple("biufc") and code[1:].isdigit()):
        raise CheckpointError(f"it holds an array of {code!r:.20}, which is no number")
    return np.dtype(code).newbyteorder("<")


def _scalar(dtype: np.dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype)[0].item()


def _array(kind: Any, *_: Any) -> Instance:
    return Instance(kind)


def _is_layer(value: Any) -> bool:
    """Whether an ``other_parameter`` is a layer; its weights are in ``state_dict`` too."""
    return isinstance(value, Instance) and "_parameters" in (value.state or ())


def _plain(value: Any, path: str) -> Any:
    """``value`` with every stand-in resolved."""
    if isinstance(value, Instance):
        return _resolved(value, path)
    if isinstance(value, Name):
        return f"{value.module}:{value.name}"
    if isinstance(value, dict):
        return {_plain(k, path): _plain(v, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, path) for item in value)
    return value


def _resolved(value: Instance, path: str) -> Any:
    kind, state = value.kind.rpartition(".")[2], value.state
    if value.kind in ("numpy.ndarray", "numpy.matrix", "numpy.matrixlib.defmatrix.matrix"):
        _, shape, dtype, by_column, raw = state
        array = np.frombuffer(raw, dtype).reshape(shape, order="F" if by_column else "C").copy()
        return np.asmatrix(array) if kind == "matrix" else array
    if value.kind.startswith("scipy.sparse.") and kind in ("csr_matrix", "csc_matrix"):
        parts = tuple(_plain(state[name], path) for name in ("data", "indices", "indptr"))
        return getattr(sparse, kind)(parts, shape=state["_shape"])
    if value.kind == "recbole.config.configurator.Config":
        return _plain(state["final_config_dict"], path)
    if path.startswith("config."):
        return value.kind
    raise CheckpointError(
        f"its {path} is a {value.kind}, which cannot be read without running code"
    )
