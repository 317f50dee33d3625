"""Who may import whom, who may step, and how long a module may be; read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "recbole_adv"
FILES = sorted(ROOT.rglob("*.py"))

# From low to high; a module imports from its own row and from lower ones.
ROWS = [
    {"errors", "compat", "compat_quick_start", "checkpoint", "plain_data", "legacy_checkpoint"}
    | {"restricted_pickle", "import_hook", "options", "objective"}
    | {"model_state", "class_path", "ray_session", "loss_modules", "processes", "host_memory"},
    {"game", "environment", "data", "loader"},
    {"technique", "model", "evaluation"},
    {"trainer", "discovery", "config", "config_check", "recbole_values", "run_directory"}
    | {"registration", "prepared_run", "resumption"},
    {"quick_start", "seeds", "launch"},
    {"sweep", "plot", "report", "robustness"},
    {"cli", "command", "__main__", "__init__"},
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
# Of one row, but strangers to each other: neither may import the other.
STRANGERS = [{"game", "environment"}, {"technique", "model"}]


def part_of(dotted: str) -> str:
    """``recbole_adv.game.player`` -> ``game``; a name of the package itself -> ``__init__``."""
    name = (dotted.split(".") + ["__init__"])[1]
    return name if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file() else "__init__"


def typing_only(tree: ast.AST) -> set[int]:
    """The nodes under ``if TYPE_CHECKING:``, which no interpreter imports."""
    guards = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    return {
        id(node) for guard in guards for statement in guard.body for node in ast.walk(statement)
    }


def imports_of(source: str) -> set[str]:
    """The parts of recbole_adv that a module imports, also inside its functions."""
    tree = ast.parse(source)
    skipped, found = typing_only(tree), set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {part_of(name) for name in found if name.split(".")[0] == "recbole_adv"}


def violations(part: str, imported: set[str]) -> list[str]:
    """What a part may not import, in words."""
    return [
        f"{part} (row {LEVEL[part]}) imports {other} (row {LEVEL[other]})"
        for other in sorted(imported - {part})
        if LEVEL[other] > LEVEL[part] or any({part, other} <= pair for pair in STRANGERS)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in LEVEL, f"{part} has no row; give it one in this test"
    assert violations(part, imports_of(file.read_text(encoding="utf-8"))) == []


def test_the_rule_sees_what_it_forbids():
    """The test itself must be able to fail."""
    source = "def f():\n    from recbole_adv.trainer.turn import Turn\n"
    assert imports_of(source) == {"trainer"}
    assert imports_of("from recbole_adv import discovery, __version__") == {"discovery", "__init__"}
    assert imports_of("if TYPE_CHECKING:\n    from recbole_adv.trainer import step") == set()
    assert violations("model", {"trainer", "game", "technique"}) == [
        "model (row 2) imports technique (row 2)",
        "model (row 2) imports trainer (row 3)",
    ]
    assert violations("trainer", {"discovery", "technique", "errors"}) == []


def steps_in(source: str) -> list[str]:
    """Calls of a ``backward``, or of the ``step`` of an optimizer or scaler, as written."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = ("backward", "step")
    found = [ast.unparse(f) for f in calls if isinstance(f, ast.Attribute) and f.attr in names]
    return [call for call in found if call != "super().step"]  # an optimizer made of another


def test_only_the_engine_steps():
    found = {str(f.relative_to(ROOT)): steps_in(f.read_text(encoding="utf-8")) for f in FILES}
    gradients, engine = found.pop("trainer/gradient.py"), found.pop("trainer/step.py")
    assert {name: calls for name, calls in found.items() if calls} == {}
    assert gradients == ["torch.autograd.backward"]
    assert {"turn.optimizer.step", "turn.scaler.step"} <= set(engine)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_is_longer_than_250_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 250
