"""Run code right around the import of somebody else's module, whenever that import happens."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, NamedTuple

_MARK = "_recbole_adv_shim"


class Hook(NamedTuple):
    """What to do with a module: the context it is executed in, the patch that runs after it."""

    around: Callable[[], AbstractContextManager]
    after: Callable[[ModuleType], None]


def install(hooks: Mapping[str, Hook]) -> None:
    """Hook the modules that ``hooks`` names; those imported already are patched now.

    Installing twice is installing once, if each patch is harmless when run twice on one module
    (:func:`replace` is).
    """
    if not any(isinstance(f, _HookFinder) and f.hooks is hooks for f in sys.meta_path):
        sys.meta_path.insert(0, _HookFinder(hooks))
    for name, hook in hooks.items():
        if name in sys.modules:
            hook.after(sys.modules[name])


def replace(owner: Any, name: str, make: Callable) -> None:
    """Set ``owner.name`` to ``make(stock)``, once, with the stock function's name and docstring."""
    stock = getattr(owner, name)
    if not hasattr(stock, _MARK):
        shim = functools.wraps(stock)(make(stock))
        setattr(shim, _MARK, True)
        setattr(owner, name, shim)


@contextmanager
def stand_ins(stubs: Mapping[str, ModuleType]) -> Iterator[None]:
    """Put ``stubs`` into ``sys.modules``, and what was there back afterwards."""
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def importable(name: str) -> bool:
    """Whether a module can be imported, with everything that it needs."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


class _HookFinder(importlib.abc.MetaPathFinder):
    """Finds the hooked modules as the other finders do, and wraps their execution."""

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.hooks = hooks

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.hooks:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _HookLoader(spec.loader, self.hooks[fullname])
        return spec


class _HookLoader(importlib.abc.Loader):
    """Stands in for a loader until its module is executed, which gets its own loader back."""

    def __init__(self, loader: Any, hook: Hook) -> None:
        self.loader = loader
        self.hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(
            self.loader, name
        )  # get_source and others, for who looks but does not import

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        with self.hook.around():
            self.loader.exec_module(module)
        self.hook.after(module)
