"""A class by where it is written: ``package.module:Class`` or ``path/to/file.py:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

from recbole_adv.errors import ConfigError, suggest


def class_at(path: str, what: str = "model") -> type:
    """The class at ``path``; ``what`` it is for names it in errors (:class:`ConfigError`)."""
    location, _, name = path.rpartition(":")
    if location.endswith(".py"):
        module = _import_file(Path(location), what)
    else:
        try:
            module = importlib.import_module(location)
        except Exception as error:  # whatever the module does
            raise ConfigError(
                f"the module {location!r} of {what} {path!r} cannot be imported: {error}; write "
                "package.module:Class or path/to/file.py:Class"
            ) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        known = f"; it has {', '.join(classes) or 'none'}"
        raise ConfigError(f"{location} has no class {name!r}{suggest(name, classes) or known}")
    return found


def path_of(cls: type) -> str:
    """What :func:`class_at` finds the class by, in another process too."""
    try:
        return f"{Path(inspect.getfile(cls)).resolve()}:{cls.__name__}"
    except (OSError, TypeError):  # defined in a console or a notebook
        return f"{cls.__module__}:{cls.__name__}"


def _import_file(file: Path, what: str):
    """The module in ``file``, imported once under a name made of its path."""
    if not file.is_file():
        raise ConfigError(f"there is no file {str(file)!r}; write {what} as path/to/file.py:Class")
    file = file.resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(file):
            return module
    name = f"recbole_adv_user_{file.stem}_{abs(hash(str(file))):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:  # modules beside it, as for ``python file.py``
        sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"{file.name} cannot be run, mend it: {type(error).__name__}: {error}"
        ) from error
    return module
