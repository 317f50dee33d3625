"""The wheel, an editable install, and a run where nothing optional is installed."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "LICENSE", "README.md", "recbole_adv", "properties")
OPTIONAL = ("ray", "hyperopt", "onnx", "matplotlib", "wandb")
RUN = ["run", "--epochs=1", "--show_progress=False", "--state=error", "--use_gpu=False"]

BLOCKED = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {OPTIONAL}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import recbole_adv
from recbole_adv.cli import main
code = main(sys.argv[1:])
assert not set(sys.modules) & set({OPTIONAL}), "imported all the same"
sys.exit(code)
"""

EDITABLE = """
import sys
# This environment may hold the package as well, and a path comes before setuptools' finder.
sys.meta_path.sort(key=lambda finder: "editable" not in str(finder).lower())
import recbole_adv, recbole_adv.options
print(recbole_adv.__file__, recbole_adv.options.properties_dir(), sep="\\n")
"""


def run(*command: object, cwd: Path, path: str = "", check: bool = True):
    """A process that sees the packages of this environment, ``path`` before them, no checkout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONPATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    words = list(map(str, command))
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy, since building writes beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    run(*build, sources, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory that holds the wheel's content and nothing else."""
    target = tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", target, wheel, cwd=target)
    return target


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def files_of(folder: str, pattern: str) -> set[str]:
    return {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob(pattern)}


def test_setup_cfg_lists_every_package(setup):
    """Wherever there is a module, whether or not the folder has an ``__init__.py``."""
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "recbole_adv").rglob("*.py")}
    listed = set(setup["options"]["packages"].split())
    there = {".".join(folder.parts) for folder in folders} | {"recbole_adv.properties"}
    assert listed == there, "mend options.packages in setup.cfg"


def test_wheel_holds_all_modules_and_properties_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"recbole_adv/{name}" for name in files_of("recbole_adv", "*.py")}
    properties = {f"recbole_adv/properties/{name}" for name in files_of("properties", "*.yaml")}
    assert {"recbole_adv/cli.py", "recbole_adv/properties/model/EIIL.yaml"} <= modules | properties
    assert names == modules | properties


def test_every_dependency_has_a_lower_and_an_upper_bound(setup):
    extras = setup["options.extras_require"]
    lists = [setup["options"]["install_requires"], *extras.values()]
    found = [line for text in lists for line in text.split("\n") if line and "%" not in line]
    assert len(found) >= 12
    for line in found:
        assert re.fullmatch(r"[\w-]+(\[\w+\])? >=[\d.]+,<[\d.]+", line), line


def test_wheel_runs_in_an_empty_directory(installed, tmp_path):
    python = (sys.executable, "-m", "recbole_adv")
    find = "from importlib.util import find_spec; print(find_spec('recbole_adv').origin)"
    where = run(sys.executable, "-c", find, cwd=tmp_path, path=str(installed)).stdout.strip()
    assert where == str(installed / "recbole_adv" / "__init__.py")  # not the checkout's
    assert not (installed / "properties").exists()
    eiil = ("-m", "EIIL", "-d", "ml-100k")
    shown = run(*python, "config", *eiil, cwd=tmp_path, path=str(installed)).stdout
    assert re.search(r"^max_interval: 3  \[recbole_adv EIIL\.yaml\]", shown, re.MULTILINE)
    assert re.search(r"^max_unit: 'step'  \[recbole_adv overall\.yaml\]", shown, re.MULTILINE)
    assert not list(tmp_path.iterdir())
    done = run(*python, *RUN, *eiil, cwd=tmp_path, path=str(installed))
    assert done.stderr == ""
    (result,) = tmp_path.glob("runs/EIIL-ml-100k-*/result.json")
    assert '"test_result"' in result.read_text()


def test_console_script(wheel):
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if "entry_points" in name]
    assert "recbole-adv = recbole_adv.cli:main" in zipfile.ZipFile(wheel).read(name).decode()


def test_editable_install_reads_the_properties_of_the_checkout(sources, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = sysconfig.get_path("purelib")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(python, *pip, "--editable", sources, cwd=tmp_path, path=packages)
    where = run(python, "-c", EDITABLE, cwd=tmp_path, path=packages).stdout.split("\n")
    assert where[:2] == [
        str(sources / "recbole_adv" / "__init__.py"),
        str(sources / "properties"),
    ]


def test_trains_without_the_optional_packages(tmp_path):
    """On the checkout, where ray, hyperopt, onnx, matplotlib and wandb cannot be imported."""
    data = ("-m", "EIIL", "-d", "checkerboard", f"--data_path={ROOT / 'dataset'}")
    done = run(sys.executable, "-c", BLOCKED, *RUN, *data, cwd=tmp_path, path=str(ROOT))
    assert done.stderr == ""
    assert list(tmp_path.glob("runs/EIIL-checkerboard-*/result.json"))
