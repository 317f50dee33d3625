"""Python values as plain data and back: tensors, str, int, float, bool, None, list, tuple, dict.

``torch.load(weights_only=True)`` reads such a tree with no allow-list. What else a checkpoint may
hold is written as a dictionary with one reserved key, one of those in ``_DECODERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import torch
from scipy import sparse

from recbole_adv.errors import CheckpointError

_ENUM_MODULE = "recbole.utils.enum_type"


def encode(value: Any, path: str = "") -> Any:
    """``value`` as plain data. Encoding twice is encoding once.

    A numpy scalar becomes a Python number, a Parameter a tensor, a subclass of dict, list or tuple
    the plain type. Raises CheckpointError for what is no data, with its ``path`` in the tree, as in
    ``other_parameter.cache``.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor)
    if isinstance(value, dict):
        return _encode_dict(value, path)
    if isinstance(value, (list, tuple)):
        kind = tuple if isinstance(value, tuple) else list
        return kind(encode(item, f"{path}[{index}]") for index, item in enumerate(value))
    if isinstance(value, (set, frozenset)):
        return {"__set__": [encode(item, path) for item in sorted(value, key=repr)]}
    if isinstance(value, torch.device):
        return {"__device__": str(value)}
    if isinstance(value, Enum) and type(value).__module__ == _ENUM_MODULE:
        return {"__enum__": [type(value).__name__, value.name]}
    if isinstance(value, type):
        return {"__class__": f"{value.__module__}:{value.__qualname__}"}
    if type(value) in (np.ndarray, np.matrix) and value.dtype.kind in "biufc":
        key = "__matrix__" if isinstance(value, np.matrix) else "__array__"
        return {key: _array_as_tensor(value, path)}
    if sparse.issparse(value) and value.ndim == 2:
        return {"__sparse__": _encode_sparse(value, path)}
    raise _not_data(value, path)


def decode(value: Any) -> Any:
    """The value that was encoded; what is decoded already stays as it is.

    An enum is RecBole's; a class comes back as the string ``module:qualname`` and is not imported.
    """
    if type(value) in (list, tuple):
        return type(value)(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    key = next(iter(value), None)
    if len(value) == 1 and key in _DECODERS:
        try:
            return _DECODERS[key](value[key])
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{key!r} is a reserved key and cannot hold {value[key]!r:.60}; rename the key"
            ) from error
    return {name: decode(item) for name, item in value.items()}


def _not_data(value: Any, path: str) -> CheckpointError:
    kind = type(value)
    return CheckpointError(
        f"{path or 'the value'} is a {kind.__module__}.{kind.__qualname__}, which is no data; "
        "keep a tensor, an array, a number, a string, a list or a dict there instead"
    )


def _encode_dict(value: dict, path: str) -> dict:
    encoded: dict[Any, Any] = {}
    for key, item in value.items():
        inside = f"{path}.{key}" if path else str(key)
        name = encode(key, f"a key of {path or 'the value'}")
        if not isinstance(name, (str, int, float, bool, tuple, type(None))):
            raise _not_data(key, f"a key of {path or 'the value'}")
        encoded[name] = encode(item, inside)
    if len(encoded) == 1:
        decode(encoded)  # a user's dict with a key of ours fails now, not when the file is needed
    return encoded


def _array_as_tensor(value: np.ndarray, path: str) -> torch.Tensor:
    try:
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(native)
    except TypeError:  # a kind of number that torch has not
        raise _not_data(value, f"{path} with dtype {value.dtype}") from None


def _encode_sparse(value: Any, path: str) -> dict[str, Any]:
    entries = value.tocoo()
    return {
        "format": value.format,
        "is_array": isinstance(value, sparse.sparray),
        "shape": tuple(int(n) for n in value.shape),
        "row": _array_as_tensor(entries.row, path),
        "col": _array_as_tensor(entries.col, path),
        "data": _array_as_tensor(entries.data, path),
    }


def _decode_sparse(parts: dict[str, Any]) -> Any:
    kind = sparse.coo_array if parts["is_array"] else sparse.coo_matrix
    row, col, data = (_tensor_as_array(parts[name]) for name in ("row", "col", "data"))
    return kind((data, (row, col)), shape=parts["shape"]).asformat(parts["format"])


def _tensor_as_array(value: torch.Tensor) -> np.ndarray:
    return value.cpu().numpy()  # a checkpoint loaded onto a GPU has its arrays there too


def _decode_enum(names: list[str]) -> Enum:
    from recbole.utils import enum_type

    name, member = names
    kind = getattr(enum_type, name)
    if kind.__module__ != _ENUM_MODULE:
        raise TypeError(f"{name} is no enum of RecBole's")
    return kind[member]


def _decode_class(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError("a class is written as a string")
    return name


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "__set__": lambda items: {decode(item) for item in items},
    "__device__": torch.device,
    "__enum__": _decode_enum,
    "__class__": _decode_class,
    "__array__": _tensor_as_array,
    "__matrix__": lambda value: np.asmatrix(_tensor_as_array(value)),
    "__sparse__": _decode_sparse,
}
