r"""Searches settings with Optuna, by the macro-F1 of validation films.

python launch/sweep.py --config configs/sweep_phantom.py --trials 30
python launch/sweep.py --config configs/sweep_phantom.py --trials 30    # a 2nd worker
python launch/sweep.py --config configs/sweep_phantom.py --trials 30 \
    --slurm 8 --slurm-args '{"timeout_min": 240, "gpus_per_node": 1}'

The config file has `get_config()`, the experiment that all trials share, and
`get_space()`, config field -> Optuna distribution. Each trial is an ordinary
`python -m hapre_jax.train` in WORKDIR/trial-N, and is stopped early where its
validation F1 is below the median of the others at the same step. The same command
goes on with the study, and with trials that were interrupted; given again while it
runs, it is another worker. Workers that share no folder need a --storage; it says
which of them have died. No test film decides anything.

Leaves WORKDIR/best.json, the best trial's settings as a --config of the train program,
and pictures of the search. Needs pip install -e '.[sweep]'.
"""

import argparse
import pathlib
import shlex

import rich.console
import rich.markup
import rich.table

from hapre_jax import cli, config_file, experiments, json_file, log, search
from hapre_jax import config as config_lib
from hapre_jax.errors import UserError


def _study(arguments):
    """The study of the arguments.

    Raises:
      UserError: it was begun with other settings or another seed.
    """
    base = config_file.load(arguments.config)
    study = search.open_study(
        _name(arguments),
        arguments.workdir,
        storage=arguments.storage,
        seed=arguments.seed,
        warmup_steps=base.policy.warmup_steps,
    )
    search.bind(study, base, arguments.seed, arguments.workdir)
    return study


def work(arguments: argparse.Namespace) -> None:
    """Runs trials until the study has as many as were asked for."""
    optuna = search.import_optuna()
    console = rich.console.Console()
    workdir, space = arguments.workdir, search.load_space(arguments.config)
    study = _study(arguments)
    states = optuna.trial.TrialState

    def count(*of):
        return len(study.get_trials(deepcopy=False, states=of))

    failures = 0  # in a row
    with log.progress_bar(console, "trials") as update:
        while True:
            search.take_up_interrupted(study)
            taken = count(states.COMPLETE, states.PRUNED, states.RUNNING)
            if taken >= arguments.trials:
                return
            trial = search.ask(study, space, workdir)
            told = {}
            try:
                value = search.run_trial(
                    trial,
                    config=arguments.config,
                    workdir=workdir,
                    seed=arguments.seed,
                )
            except optuna.TrialPruned as pruned:
                told["state"] = states.PRUNED
                text, failures = f"pruned at {pruned}", 0
            except search.TrialFailed as failed:
                told["state"] = states.FAIL
                text, failures = f"failed: {failed}", failures + 1
            except optuna.exceptions.UpdateFinishedTrialError:
                text, failures = "taken up by another worker", 0
            else:
                told["values"] = value
                text, failures = f"F1 {value:.3f}", 0
            # One that was taken from this worker has been told already.
            study.tell(trial, **told, skip_if_finished=True)
            done = count(states.COMPLETE, states.PRUNED)
            update(done, arguments.trials, f"trial {trial.number}: {text}")
            if failures == 3:
                raise UserError(
                    f"three trials in a row failed, the last with: {text}; "
                    f"see {workdir}/trial-*.log"
                )


def finish(arguments: argparse.Namespace, console: rich.console.Console) -> None:
    """Prints the best trials; writes `best.json` and the plots."""
    optuna = search.import_optuna()
    workdir = arguments.workdir
    study = _study(arguments)
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"no trial of {workdir} is complete")
    complete.sort(key=lambda trial: -trial.value)
    # A column a trial: the names of fields would not fit beside each other.
    shown = complete[:4]
    table = rich.table.Table(title="The best trials")
    for title in ("trial", *(str(trial.number) for trial in shown)):
        table.add_column(title, justify="left" if title == "trial" else "right")
    table.add_row("validation F1", *(f"{trial.value:.4f}" for trial in shown))
    for field in complete[0].params:
        table.add_row(field, *(_shown(trial.params[field]) for trial in shown))
    console.print(table)
    base = config_file.load(arguments.config)
    texts = {f: config_lib.to_text(v) for f, v in complete[0].params.items()}
    best = config_lib.override_all(base, texts)
    json_file.write(workdir / "best.json", config_lib.to_dict(best))
    written = ["best.json", *_plot(study, workdir, len(complete))]
    log.say(console, f"Written to {workdir}: {', '.join(written)}")
    words = ["python", "-m", "hapre_jax.train", "--config", f"{workdir}/best.json"]
    words += ["--seed", str(arguments.seed + 1), "--workdir", f"{workdir}/best"]
    log.say(console, f"Next: {shlex.join(words)}")


def _shown(value):
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return rich.markup.escape(shown)  # of a path, say


def _plot(study, workdir, complete) -> list[str]:
    """Pictures of the history and, of enough trials, of what mattered."""
    import matplotlib

    matplotlib.use("agg")
    search.import_optuna()
    from optuna.visualization import matplotlib as plots

    drawn = {"history.png": plots.plot_optimization_history}
    if complete >= 5:
        drawn["importance.png"] = plots.plot_param_importances
    with search.quiet():
        for name, plot in drawn.items():
            figure = plot(study).figure
            figure.set_size_inches(8, 5)
            figure.savefig(workdir / name, dpi=110, bbox_inches="tight")
    return list(drawn)


def _name(arguments):
    return pathlib.Path(arguments.config.partition(".py")[0]).name


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python launch/sweep.py",
        description=__doc__,
    )
    parser.add_argument("--config", required=True, help="file with get_space()")
    parser.add_argument(
        "--trials",
        type=int,
        default=30,
        metavar="N",
        help="of the whole study, all workers together (default 30)",
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of all trials (default runs/CONFIG)",
    )
    parser.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="database of the study, for workers that share no folder, such as "
        "sqlite:///FILE or postgresql://USER@HOST/NAME (default: a journal in the "
        "workdir)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of trainings and search (default 0)"
    )
    experiments.add_slurm_flags(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what is searched, and stop"
    )
    arguments = parser.parse_args(argv)
    arguments.workdir = arguments.workdir or pathlib.Path("runs") / _name(arguments)
    if arguments.trials < 1:
        raise UserError(f"--trials is {arguments.trials}, but must be at least 1")
    console = rich.console.Console()
    if arguments.dry_run:
        for field, distribution in search.load_space(arguments.config).items():
            print(f"{field}: {distribution}")
        return 0
    search.load_space(arguments.config)  # a mistake must not wait for a queue
    base = config_file.load(arguments.config)
    config_lib.override(base, "seed", str(arguments.seed))
    if arguments.slurm:
        workers = [arguments] * arguments.slurm
        experiments.submit(
            work, workers, arguments, arguments.workdir / "slurm", console
        )
    else:
        work(arguments)
    finish(arguments, console)
    return 0


if __name__ == "__main__":
    cli.run(main)
