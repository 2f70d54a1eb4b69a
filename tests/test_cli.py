import errno
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from hapre_jax import cli, config, config_file, run_folder
from hapre_jax.config import Config
from hapre_jax.errors import UserError


def _parse(line, **kwargs):
    arguments = {
        "program": "python -m hapre_jax.train",
        "description": "Trains a network.",
        "default_config": "configs/phantom.py",
    }
    return cli.parse(line.split(), **arguments | kwargs)


def _help(capsys, line, **kwargs):
    with pytest.raises(SystemExit) as stopped:
        _parse(line, **kwargs)
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def finished_run(tmp_path):
    values = config.to_dict(Config(seed=7))
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_without_flags_the_default_config_is_taken():
    values, rest = _parse("")
    assert values == config_file.load("configs/phantom.py")
    expected = {"config": "configs/phantom.py", "workdir": "runs/phantom"}
    assert vars(rest) == expected | {"given": set()}


def test_flags_change_the_chosen_config():
    values, rest = _parse(
        "--data.root a/b --config configs/hapre_krs.py --train.steps=5 --seed 3 "
        "--policy.explore false --workdir w"
    )
    changes = {
        "data.root": "a/b",
        "train.steps": "5",
        "seed": "3",
        "policy.explore": "false",
    }
    start = config_file.load("configs/hapre_krs.py")
    assert values == config.override_all(start, changes)
    assert vars(rest) == {
        "config": "configs/hapre_krs.py",
        "workdir": "w",
        "given": set(changes),
    }


def test_the_last_of_two_equal_flags_counts():
    assert _parse("--seed 1 --seed 2")[0].seed == 2


@pytest.mark.parametrize(
    ("spec", "workdir"),
    [
        ("x.py", "runs/x"),
        ("x.py:b", "runs/x-b"),
        ("r/x1/config.json", "runs/x1"),
        ("best.json", "runs/best"),
    ],
)
def test_workdir_is_named_after_the_config(tmp_path, monkeypatch, spec, workdir):
    text = "from hapre_jax.config import Config\ndef get_config(a=''): return Config()"
    (tmp_path / "x.py").write_text(text)
    (tmp_path / "r" / "x1").mkdir(parents=True)
    for file in (tmp_path / "r" / "x1" / "config.json", tmp_path / "best.json"):
        file.write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert _parse(f"--config {spec}")[1].workdir == workdir


def test_the_folder_of_another_task_says_which_it_is():
    for task, workdir in (("seg", "runs/seg-phantom"), ("phantom", "runs/phantom")):
        assert _parse("", task=task)[1].workdir == workdir


def test_programs_add_their_own_arguments():
    def add(parser):
        parser.add_argument("--average", action="store_true", help="also the whole")

    values, rest = _parse("--average --seed 1", add_arguments=add)
    assert values.seed == 1 and rest.average is True
    with pytest.raises(UserError, match=r"unknown option --avrage; .* --average\?$"):
        _parse("--avrage", add_arguments=add)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--trian.steps 5",
            "unknown option --trian.steps; did you mean --train.steps?",
        ),
        ("--steps=5", "unknown option --steps; did you mean --train.steps?"),
        ("--wrkdir x", "unknown option --wrkdir; did you mean --workdir?"),
        ("--work x", "unknown option --work; "),  # no abbreviations
        ("--zzz", "unknown option --zzz; --help lists all"),
        ("runs", "unexpected argument 'runs'; every option starts with --"),
        (
            "--train.steps x",
            "train.steps is 'x', but must be an integer >= 1 and <= 1000000000",
        ),
        ("--train.steps", "argument --train.steps: expected one argument"),
        ("--config", "argument --config: expected one argument"),
        ("--workdir=", "--workdir is empty: name a folder"),
        (
            "--train.task_learning_rate -1e-3",
            "train.task_learning_rate is -0.001, but must be a number > 0",
        ),
        (
            "--data.image_size 100000",
            "data.image_size is 100000, but must be an integer >= 8 and <= 8192",
        ),
        ("--config x.py", "there is no config file 'x.py'; there are configs/"),
        (
            "--policy.grid 5 --policy.image_size 32",
            "policy.image_size is 32, but must be a multiple of policy.grid",
        ),
    ],
)
def test_wrong_command_lines_end_in_one_sentence(line, message):
    with pytest.raises(UserError) as error:
        _parse(line)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_name_that_no_disk_takes_is_one_sentence(monkeypatch, capsys):
    name = "x" * 300
    monkeypatch.setattr("sys.argv", ["train", "--workdir", name])

    def main(argv):
        values, arguments = _parse(" ".join(argv))
        run_folder.check_workdir(pathlib.Path(arguments.workdir), values)

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {name}: File name too long\n"


def test_help_explains_every_field_with_its_value(capsys):
    text = _help(capsys, "--help")
    for path, field in config.options(Config()).items():
        assert f"--{path} " in text
        assert field.help.removesuffix(".") in text
        assert all(choice in text for choice in field.choices)
    steps = config_file.load("configs/phantom.py").train.steps
    limits = f"(>= 1 and <= 1000000000; default {steps})"
    assert f"--train.steps N Updates of the task network {limits}" in text
    assert "--data.split_fractions X,X,... " in text
    assert "The task network, which classifies the key area." in text
    assert "examples: python -m hapre_jax.train python -m" in text
    assert "--config FILE[:ARG]" in text and "configs/phantom_paper.py" in text


def test_help_shows_the_chosen_config_s_values(capsys):
    text = _help(capsys, "--config configs/hapre_krs.py --help")
    size = "Pixels of a side of the crop that it sees (>= 8 and <= 8192; default 640)"
    assert size in text
    assert size not in _help(capsys, "--help")
    assert "default runs/hapre_krs)" in text


def test_examples_stay_whole_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    example = "--seed 5 " * 12 + "--workdir runs/a"
    with pytest.raises(SystemExit):
        _parse("--help", examples=[example])
    assert f"  python -m hapre_jax.train {example}\n" in capsys.readouterr().out


def test_help_ends_with_the_program_s_examples(capsys):
    text = _help(capsys, "-h", examples=["--seed 5"])
    assert text.endswith("examples: python -m hapre_jax.train --seed 5")


def test_finished_run_gives_the_config(finished_run):
    values, rest = _parse(f"{finished_run} --train.steps 9", default_config=None)
    assert values == config.override(Config(seed=7), "train.steps", "9")
    assert vars(rest) == {"run": str(finished_run), "given": {"train.steps"}}


@pytest.mark.parametrize("line", ["", "runs/of_phantoms"])
def test_films_are_not_ignored_for_phantoms(tmp_path, monkeypatch, line):
    """As where `--data.name folder` was forgotten, to train or to test a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / line).mkdir(parents=True, exist_ok=True)
    run_folder.write_config(tmp_path / line, Config())
    settings = {"default_config": None if line else "configs/phantom.py"}
    with pytest.raises(UserError) as error:
        _parse(f"{line} --data.root films", **settings)
    assert str(error.value) == (
        "data.root is films, but data.name is phantom, which reads no files: give "
        "--data.name too, folder for films of your own"
    )
    values, _ = _parse(f"{line} --data.root films --data.name folder", **settings)
    assert (values.data.name, values.data.root) == ("folder", "films")


def test_a_flag_of_one_data_set_is_not_ignored_for_others():
    with pytest.raises(UserError) as error:
        _parse("--data.rsna_labels target")
    assert str(error.value) == (
        "data.rsna_labels is of rsna_pneumonia alone, but data.name is phantom"
    )
    with pytest.raises(UserError, match="^data.quality is of phantom alone"):
        _parse("--data.quality low --data.name folder --data.root films")
    line = "--data.rsna_labels target --data.name rsna_pneumonia --data.root films"
    assert _parse(line)[0].data.rsna_labels == "target"


def test_phantoms_in_the_place_of_a_config_s_films(tmp_path):
    films = config.DataConfig(name="ped_pneumonia", root="films", degrade="low")
    run_folder.write_config(tmp_path, Config(data=films))
    line = f"{tmp_path} --data.name phantom"
    assert _parse(line, default_config=None)[0].data == config.DataConfig()
    with pytest.raises(UserError, match="^data.root is other, but data.name is phan"):
        _parse(f"{line} --data.root other", default_config=None)


def test_help_of_a_program_for_runs_needs_no_run(capsys):
    text = _help(capsys, "--help", default_config=None)
    assert "RUN [options]" in text and "--data.root TEXT" in text
    # Flags that such programs refuse are not offered.
    assert "--train.steps" not in text and "--seed" not in text
    assert "--workdir" not in text and "default" not in text


def test_a_run_that_lost_its_config_is_known_by_its_results(tmp_path):
    settings = Config(seed=5)
    results = {"config": config.to_dict(settings)}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert _parse(str(tmp_path), default_config=None)[0] == settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: RUN"),
        ("nowhere", "run folder 'nowhere' does not exist"),
        (".", "'.' is not the folder of a run: it has no config.json"),
        ("a.html", "'a.html' is a file: name the folder of a run"),
    ],
)
def test_wrong_run_folders(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.html").touch()
    with pytest.raises(UserError) as error:
        _parse(line, default_config=None)
    assert str(error.value) == message


def _exit_status(monkeypatch, main):
    monkeypatch.setattr("sys.argv", ["program", "--a", "b"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    return stopped.value.code


def test_run_passes_the_command_line(monkeypatch):
    seen = []
    assert not _exit_status(monkeypatch, seen.extend)
    assert seen == ["--a", "b"]


def test_run_passes_the_status(monkeypatch):
    assert _exit_status(monkeypatch, lambda argv: 3) == 3


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("x is 1"), 2, "error: x is 1\n"),
        (KeyboardInterrupt, 130, "interrupted\n"),
        (
            MemoryError("Unable to allocate 9. TiB for an array"),
            2,
            "error: memory does not suffice (Unable to allocate 9. TiB for an array); "
            "docs/reliability.md says what takes less\n",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
            2,
            "error: the device's memory does not suffice (Out of memory); "
            "docs/reliability.md says what takes less\n",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "a.png"),
            2,
            "error: a.png: Too many open files\n",
        ),
    ],
)
def test_run_prints_a_sentence_instead_of_a_traceback(
    monkeypatch, capsys, error, status, text
):
    def main(argv):
        raise error

    assert _exit_status(monkeypatch, main) == status
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", text)


def test_run_lets_bugs_through(monkeypatch):
    def main(argv):
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        cli.run(main)


IN_FINALIZER = """
    class Kept:
        def __del__(self):
            os.kill(os.getpid(), signal.{name})
            time.sleep(0.01)
    Kept()
    time.sleep(20)
"""
ENDS = """
import errno, os, signal, sys, time
from hapre_jax import cli

# Ignored where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)

def main(argv):
    {line}

cli.run(main)
"""


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted\n"),
        # Where Python would print the exception and go on.
        (IN_FINALIZER.format(name="SIGTERM"), 143, "terminated\n"),
        (IN_FINALIZER.format(name="SIGINT"), 130, "interrupted\n"),
        (
            "open('/dev/full', 'w').write('x' * 99999)",
            2,
            "error: No space left on device\n",
        ),
        (
            "raise OSError(errno.EROFS, 'Read-only file system', '/data/x')",
            2,
            "error: /data/x: Read-only file system\n",
        ),
    ],
)
def test_how_programs_end(line, code, said):
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(line=line)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_a_terminal_without_the_letters_of_a_name():
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(line="print('R\u00f6ntgen \u80ba')")],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stdout) == (0, b"R\xf6ntgen \\u80ba\n")


@pytest.mark.parametrize("line", ["print(1)", "print(1); sys.exit(0)"])
def test_nobody_reads_what_a_program_says(line):
    program = [sys.executable, "-c", ENDS.format(line=line)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_error_of_ours_keeps_its_traceback():
    program = ENDS.format(line="open('/nowhere/x')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 1 and b"FileNotFoundError" in done.stderr
