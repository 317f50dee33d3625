"""Read the checkpoints that stock RecBole writes, which pickle classes, without running any.

What a file may call is listed in ``_constructors``, and none of it has an effect; the rest is done
by :mod:`recbole_adv.restricted_pickle`. A Config comes back as its settings.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from scipy import sparse

from recbole_adv.errors import CheckpointError
from recbole_adv.restricted_pickle import Instance, Name, RestrictedUnpickler, refuse


def read(file: BinaryIO, map_location: Any) -> Any:
    """The tree in ``file`` as Python data: the Config as its settings, a class as a string.

    Raises CheckpointError, naming the callable, for a file that would call one when unpickled.
    """
    restricted: Any = types.SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load)
    try:
        tree = torch.load(
            file, map_location, pickle_module=restricted, weights_only=False, mmap=False
        )
        return _plain(_without_layers(tree), "")
    except CheckpointError:
        raise
    except Exception as error:  # bytes that are no pickle raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"it is no checkpoint, or a damaged one ({reason:.160})") from error


class _Unpickler(RestrictedUnpickler):
    """Knows torch's dtypes and what RecBole's checkpoints are made of."""

    @staticmethod
    def constructors() -> Mapping[str, Callable]:
        return _constructors()

    def find_class(self, module: str, name: str) -> Any:
        found = vars(torch).get(name) if module == "torch" else None
        return found if isinstance(found, torch.dtype) else super().find_class(module, name)


def _load(file: BinaryIO, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


@functools.cache
def _enums() -> dict[str, Callable]:
    from recbole.utils import enum_type as home

    kinds = (home.ModelType, home.InputType, home.EvaluatorType)
    return {f"{home.__name__}.{kind.__name__}": kind for kind in kinds}


@functools.cache
def _constructors() -> dict[str, Callable]:
    """All that a checkpoint may call; each is harmless whatever its arguments."""
    arrays: dict[str, Callable] = {"scalar": _scalar, "_reconstruct": _array}
    homes = ("numpy.core.multiarray", "numpy._core.multiarray")
    return {
        "_codecs.encode": _bytes,
        "builtins.getattr": _enum_member,
        "builtins.set": set,
        "collections.OrderedDict": OrderedDict,
        "numpy.dtype": _dtype,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_tensor_v2": _tensor,
        **{f"{home}.{name}": make for home in homes for name, make in arrays.items()},
        **_enums(),
    }


def _tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> torch.Tensor:
    return torch._utils._rebuild_tensor_v2(
        storage, offset, size, stride, False, OrderedDict(), metadata
    )


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.Tensor:
    return data


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _enum_member(kind: Any, name: str) -> Any:
    """Python 3.11 pickles an enum as ``getattr(class, name)``."""
    if not any(kind is known for known in _enums().values()):
        refuse(Name("builtins", "getattr"))
    return kind[name]


def _dtype(code: str, *_: Any) -> Instance:
    if not (isinstance(code, str) and code[:1] in tuple("biufc") and code[1:].isdigit()):
        raise CheckpointError(f"it holds an array of {code!r:.20}, which is no number")
    return Instance(code)  # filled with its byte order


def _numbers(raw: bytes, dtype: Instance) -> np.ndarray:
    order: Any = dtype.state[1] if dtype.state else "="
    return np.frombuffer(raw, np.dtype(dtype.kind).newbyteorder(order))


def _scalar(dtype: Instance, raw: bytes) -> Any:
    return _numbers(raw, dtype)[0].item()


def _array(kind: Any, *_: Any) -> Instance:
    return Instance(kind)  # filled with its shape and numbers


def _without_layers(tree: Any) -> Any:
    """Drop each ``other_parameter`` that is a layer; its weights are in ``state_dict`` too."""
    others = tree.get("other_parameter") if isinstance(tree, dict) else None
    if not isinstance(others, dict):
        return tree
    states = {k: v.state if isinstance(v, Instance) else None for k, v in others.items()}
    layers = [k for k, v in states.items() if isinstance(v, dict) and "_parameters" in v]
    return {**tree, "other_parameter": {k: v for k, v in others.items() if k not in layers}}


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
        array = _numbers(raw, dtype).reshape(shape, order="F" if by_column else "C")
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        return np.asmatrix(array) if kind == "matrix" else array
    if value.kind.startswith("scipy.sparse.") and kind in ("csr_matrix", "csc_matrix"):
        parts = tuple(_plain(state[name], path) for name in ("data", "indices", "indptr"))
        return getattr(sparse, kind)(parts, shape=state["_shape"])
    if value.kind == "recbole.config.configurator.Config":
        return _plain(state["final_config_dict"], path)
    if path.startswith("config."):
        return value.kind
    raise CheckpointError(
        f"its {path} is an object of {value.kind}, which only running its code could read"
    )
