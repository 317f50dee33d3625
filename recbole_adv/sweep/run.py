"""A sweep from its start to its report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recbole_adv import checkpoint, processes
from recbole_adv.config import Config
from recbole_adv.errors import CheckpointError, ConfigError, DataError, TrainingError
from recbole_adv.prepared_run import prepared_run
from recbole_adv.sweep import report
from recbole_adv.sweep.data_cache import DataCache, cache_folder, clear_cache
from recbole_adv.sweep.ledger import Ledger
from recbole_adv.sweep.options import Options
from recbole_adv.sweep.plan import Job, Plan, check_space, given_keys
from recbole_adv.sweep.search_file import read_space, ready_file, space_of
from recbole_adv.sweep.space import Space
from recbole_adv.sweep.state import Sweep


def run_sweep(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    params_file: str | None = None,
    params_dict: Mapping[str, Mapping[str, Any]] | None = None,
    sweep_dir: str | None = None,
    command_line: Sequence[str] | None = (),
    **options: Any,
) -> dict[str, Any]:
    """Search for the best setting of a model by its score on the validation data.

    Args:
        model, dataset, config_file_list, config_dict, command_line: as in ``run_recbole_adv``; what
            is not searched.
        params_file: a search file (:mod:`recbole_adv.sweep.search_file`).
        params_dict: the same as a dict, as in RecBole's ``HyperTuning``. Without either, the search
            file that belongs to the model.
        sweep_dir: where everything is written; a sweep that is there goes on. None is
            ``sweeps/<model>-<dataset>``.
        options: those of :class:`recbole_adv.sweep.options.Options`.

    Returns:
        ``best`` (the setting), ``score``, ``metric``, ``done``, ``pruned``, ``failed`` (how many) and
        ``sweep_dir``.

    Raises:
        RecBoleAdvError: one sentence on what is wrong; of settings that fail there is one only if all
            of them do.
    """
    processes.check_alone("a sweep")
    chosen = Options(**options)
    config = Config(model, dataset, config_file_list, config_dict, command_line)
    space = _space(config, params_file, params_dict)
    if chosen.search == "grid":
        space.grid()
    check_space(config, space)
    plan = _plan(config, space, sweep_dir, chosen)
    ledger = Ledger(plan)
    with ledger.opened():
        cache = DataCache(plan.cache)
        try:
            _prepare(plan, cache, chosen)
            return _search(Sweep(plan, chosen, ledger))
        finally:
            clear_cache(plan.cache)


def _space(config: Config, file: str | None, params: Mapping | None) -> Space:
    if params is not None:
        return space_of(params)
    name = getattr(config.model_class, "written_class", config.model_class).__name__
    path = file or ready_file(name)
    if path is None:
        raise ConfigError(
            f"there is no search file for {name}; write --params_file with lines such as "
            "'learning_rate choice [0.001, 0.01]'"
        )
    return read_space(path)


def _plan(config: Config, space: Space, sweep_dir: str | None, options: Options) -> Plan:
    if not config["eval_step"]:
        raise ConfigError(
            "a sweep needs scores of the validation, got eval_step 0; write 1 or more"
        )
    name = f"{config['model']}-{config['dataset']}"
    folder = Path(sweep_dir or Path("sweeps") / name).absolute()
    searched = space.dimensions.get("epochs")
    epochs = [config["epochs"]] if searched is None else map(searched.decode, searched.examples())
    return Plan(
        model=config["model_source"],
        dataset=config["dataset"],
        fixed=given_keys(config),
        space=space,
        folder=folder,
        cache=cache_folder(folder),
        metric=config["valid_metric"].lower(),
        bigger=bool(config["valid_metric_bigger"]),
        epochs=max(epochs),
        selection_start=config["selection_start_epoch"],
        seed=config["seed"],
        retries=options.retries,
    )


def _prepare(plan: Plan, cache: DataCache, options: Options) -> None:
    """Load the data once before any trial, so that a fault in them ends the sweep in one sentence."""
    config = plan.config(Job({}))
    _, _, valid_data, _ = cache.load(config)
    if not valid_data or not len(valid_data._dataset.inter_feat):
        raise DataError(
            f"a sweep needs validation data, and {plan.dataset!r} has none by eval_args "
            f"{config['eval_args']}; give it a share of the split"
        )
    if options.scheduler == "pbt":
        _check_exchange(plan, cache)


def _check_exchange(plan: Plan, cache: DataCache) -> None:
    """Population based training goes on with one setting from the state of another: it must fit."""
    codes = {name: each.examples()[0] for name, each in plan.space.dimensions.items()}
    with TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        state = str(Path(folder) / "state.pth")

        def build(codes: dict[str, Any], resume: str | None):
            config = plan.config(plan.job(codes))
            config["run_dir"] = config["checkpoint_dir"] = folder
            return prepared_run(config, resume, cache.load)

        with build(codes, None) as run:
            run.trainer._attach_techniques()
            checkpoint.save(run.trainer._state(-1), state)
        for name, each in plan.space.dimensions.items():
            for code in each.examples()[1:]:
                try:
                    with build({**codes, name: code}, state):
                        pass
                except CheckpointError as error:
                    raise ConfigError(
                        f"{plan.space.source}: pbt cannot change {name} while a model trains, since "
                        "its values give the model or its training another shape; leave it out, or "
                        "write --scheduler=asha"
                    ) from error


def _tool(sweep: Sweep) -> Any:
    if sweep.options.tool == "ray":
        from recbole_adv.sweep.ray_tool import RayTool

        return RayTool(sweep)
    from recbole_adv.sweep.hyperopt_tool import HyperoptTool

    return HyperoptTool(sweep)


def _search(sweep: Sweep) -> dict[str, Any]:
    ledger, options = sweep.ledger, sweep.options
    with _tool(sweep) as tool:
        tool.search()
        records = ledger.records()
        best = ledger.best(records, options.top)
        seeds = [sweep.plan.seed + number for number in range(1, options.seeds + 1)]
        tool.run([Job(r.setting, seed, True, r.id) for r in best for seed in seeds])
    result = report.write(sweep)
    if not best:
        reasons = [record.reason for record in records if record.reason]
        raise TrainingError(
            f"no trial of {len(records)} has a score; the first failed: {reasons[0]}"
            if reasons
            else "no trial has a score"
        )
    return result
