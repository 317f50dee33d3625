"""Tiny sweeps, a model that fails on demand, and Ray on this machine for the tests that need it."""

import os
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Trains like BPR; `how` says what happens in its second epoch, `notes` is where it writes what it did.
MODEL = """
import os, signal
from pathlib import Path
from recbole.model.general_recommender import BPR
from recbole_adv.errors import ConfigError


class Noted(BPR):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.how, self.name = config["how"], str(config["learning_rate"])
        self.notes = Path(config["notes"])
        self.note("built")

    def note(self, what):
        with open(self.notes, "a") as file:
            file.write(f"{self.how} {self.name} {what}\\n")

    def before_epoch(self, epoch, train_data):
        if epoch == 1:
            if self.how == "raise":
                raise RuntimeError("no luck")
            if self.how == "mistake":
                raise ConfigError("this key must not be so")
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "once" and not self.notes.with_suffix(".once").exists():
                self.notes.with_suffix(".once").touch()
                raise OSError("the disk was busy")
            if self.how == "diverge":
                self.user_embedding.weight.data.fill_(float("nan"))
        if self.how == "wait":
            import time
            time.sleep(0.15)
        self.note(f"epoch {epoch}")

    def predict(self, interaction):
        raise AssertionError("not used")
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """In the processes of trials, too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def wait_for():
    """``wait_for(condition, what)``: until it holds; an error after some minutes."""

    def wait(condition, what, seconds=180):
        end = time.time() + seconds
        while not condition():
            assert time.time() < end, f"waited in vain for {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture
def small(settings_of):
    """``small(**settings)``: the settings of a quick sweep on the checkerboard."""

    def make(**settings):
        return settings_of("BPR", stopping_step=100, checkpoint_interval=1, **settings)

    return make


@pytest.fixture
def noted(tmp_path, small):
    """A model in a file, its settings, and what it noted."""
    file = tmp_path / "noted.py"
    file.write_text(MODEL)

    class Noted:
        model = f"{file}:Noted"
        path = tmp_path / "notes.txt"
        settings = small(epochs=2, how="fine", notes=str(path))

        @classmethod
        def lines(cls, beginning=""):
            """The notes that begin so."""
            text = cls.path.read_text() if cls.path.exists() else ""
            return [line for line in text.splitlines() if line.startswith(beginning)]

    return Noted


@pytest.fixture
def sweep_of(tmp_path):
    """``sweep_of(space, **options)``: a sweep that has not begun."""
    from recbole_adv.sweep.ledger import Ledger
    from recbole_adv.sweep.options import Options
    from recbole_adv.sweep.plan import Plan
    from recbole_adv.sweep.state import Sweep

    def make(space, **options):
        plan = Plan(
            model="BPR",
            dataset="checkerboard",
            fixed={},
            space=space,
            folder=tmp_path / "sweep",
            cache=tmp_path / "cache",
            metric="mrr@10",
            bigger=True,
            epochs=12,
            selection_start=0,
            seed=2020,
        )
        return Sweep(plan, Options(**options), Ledger(plan))

    return make


@pytest.fixture(scope="module")
def ray_here():
    """Ray with two CPUs for all tests of a module, which start and stop none of their own."""
    ray = pytest.importorskip("ray")
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=80 * 1024**2,
        logging_level="error",
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)
