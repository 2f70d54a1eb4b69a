"""Shows a run's reward landscape, see `reward_landscape`.

`python -m hapre_jax.landscape RUN`.
"""

import pathlib

import rich.console

from hapre_jax import (
    checkpoint,
    cli,
    evaluation,
    log,
    methods,
    other_films,
    reward_landscape,
    run_folder,
)
from hapre_jax.config import AREAS
from hapre_jax.data import labels
from hapre_jax.errors import UserError
from hapre_jax.reporting import landscape_sheet


def main(argv: list[str]) -> int:
    """The program."""
    config, arguments = cli.parse(
        argv,
        program="python -m hapre_jax.landscape",
        description="Shows on which boxes a run's task network is good: mean loss on "
        "validation images against size and place of a box around the true lungs. With "
        "--data flags the films are others, and the run's own picture stays. "
        f"{other_films.ABOUT_FLAGS}",
        examples=(
            "runs/phantom",
            "runs/phantom/plain",
            "runs/phantom --data.quality medium",
        ),
    )
    console = rich.console.Console()
    workdir = pathlib.Path(arguments.run)
    run_folder.refuse_bundle(workdir)
    trained = run_folder.read_config(workdir)
    operations = trained.policy.operations
    if trained.method == "hapre" and not set(operations) & set(AREAS):
        raise UserError(
            f"{workdir} is a run of policy.operation {trained.policy.operation}, which "
            f"keeps no area, but a landscape needs one of {', '.join(AREAS)}"
        )
    run_folder.check_place(workdir, "RUN")  # before what takes long
    config = other_films.config_of(
        config, trained, given=arguments.given, program="landscape"
    )
    classes = None
    if (workdir / "results.json").exists():  # a run may still be at work
        classes = tuple(run_folder.read_results(workdir)["classes"])
    with log.progress_bar(console, f"{config.data.name} images") as update:
        films, _, known = other_films.load(
            config,
            trained,
            workdir,
            classes=classes,
            split="validation",
            progress=update,
        )
    if classes is not None and not labels.are_same(classes, films.classes):
        raise UserError(
            f"the run tells {', '.join(classes)} apart, and these films are "
            f"{', '.join(films.classes)}: a landscape needs the same classes"
        )
    other_films.say_what_is_left_out(known, console)
    method = methods.make(trained, len(films.classes))
    best = checkpoint.restore_best(workdir, trained, method)
    stem = "landscape" if config.data == trained.data else "landscape_elsewhere"
    size = evaluation.batch_size(config)
    landscape = reward_landscape.measure(method, best, films, batch_size=size)
    landscape_sheet.save(landscape, workdir / f"{stem}.png", step=int(best.step))
    console.print(landscape_sheet.table(landscape))
    console.print(reward_landscape.verdict(landscape), highlight=False)
    log.say(console, f"Written: {workdir}/{stem}.png and {stem}.json")
    return 0


if __name__ == "__main__":
    cli.run(main)
