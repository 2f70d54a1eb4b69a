import io
import json
import sys

import pytest
import rich.console

from hapre_jax import log
from hapre_jax.errors import UserError


def _console(**kwargs):
    return rich.console.Console(file=io.StringIO(), **kwargs)


def _written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(workdir, steps, *, start=0):
    metrics = log.MetricsLog(workdir, step=start)
    for step in steps:
        metrics.write("train", step, {"loss": step / 10})
    metrics.close()


def test_a_record_is_a_line_of_json(tmp_path):
    metrics = log.MetricsLog(tmp_path, step=0)
    metrics.write("train", 20, {"task_loss": 0.1, "reward": 1e-30})
    path = tmp_path / "metrics.jsonl"
    # On disk at once: a killed run keeps its records.
    expected = {"kind": "train", "step": 20, "task_loss": 0.1, "reward": 1e-30}
    assert _written(path) == [expected]
    metrics.write("validation", 20, {"accuracy": 0.5})
    metrics.close()
    assert _written(path)[1] == {"kind": "validation", "step": 20, "accuracy": 0.5}
    assert log.read(path) == _written(path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_drops_what_an_earlier_one_wrote(tmp_path):
    _write(tmp_path, [1, 2])
    _write(tmp_path, [1])
    assert [r["step"] for r in log.read(tmp_path / "metrics.jsonl")] == [1]


def test_records_after_the_checkpoint_are_dropped(tmp_path):
    _write(tmp_path, [1, 2, 3, 4])
    _write(tmp_path, [3], start=2)
    found = log.read(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in found] == [1, 2, 3]
    assert [r["loss"] for r in found] == [0.1, 0.2, 0.3]


def test_going_on_keeps_the_bytes_of_earlier_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(tmp_path, [1, 2])
    before = path.read_bytes()
    _write(tmp_path, [], start=2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [1, 20, 30])
def test_a_last_line_cut_short_is_left_out(tmp_path, kept):
    _write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    assert [r["step"] for r in log.read(path)] == [1]
    # The next record does not end up on the broken line.
    _write(tmp_path, [3], start=2)
    assert [r["step"] for r in _written(path)] == [1, 3]


@pytest.mark.parametrize("junk", [b"\x00\x00\xff", b'{"kind": "tr', b"7", b'{"a": 1}'])
def test_another_damaged_line_is_named(tmp_path, junk):
    _write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, junk, second]) + b"\n")
    with pytest.raises(UserError) as error:
        log.MetricsLog(tmp_path, step=2)
    assert str(error.value) == f"line 2 of {path} is no record; delete that line"
    path.write_bytes(first + b"\n" + junk)
    assert [r["step"] for r in log.read(path)] == [1]


def test_there_may_be_no_file_yet(tmp_path):
    assert log.read(tmp_path / "metrics.jsonl") == []
    _write(tmp_path, [3], start=2)
    assert [r["step"] for r in log.read(tmp_path / "metrics.jsonl")] == [3]


def test_progress_in_a_file_is_about_ten_lines_of_plain_text():
    console = _console()
    with log.progress_bar(console, "hapre [x]") as update:
        for step in range(20, 1501, 20):
            update(step, 1500, f"loss {step / 1000:.3f}")
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "hapre [x] 160/1500  loss 0.160"
    assert lines[-1] == "hapre [x] 1500/1500  loss 1.500"
    assert "\x1b" not in console.file.getvalue()


def test_progress_without_text_and_with_few_steps():
    console = _console()
    with log.progress_bar(console, "images") as update:
        for done in (1, 2, 3):
            update(done, 3)
        update(0, 0)  # of nothing
    assert console.file.getvalue() == "images 1/3\nimages 2/3\nimages 3/3\n"


def test_progress_of_a_run_that_goes_on():
    console = _console()
    with log.progress_bar(console, "hapre", start=90) as update:
        for step in range(91, 101):
            update(step, 100)
    assert console.file.getvalue() == "hapre 91/100\nhapre 100/100\n"


def test_progress_is_silent_on_a_quiet_console():
    console = _console(quiet=True)
    with log.progress_bar(console, "hapre") as update:
        update(5, 5, "loss 1")
    assert console.file.getvalue() == ""


def test_progress_on_a_terminal_shows_a_bar():
    console = _console(force_terminal=True, width=120)
    with log.progress_bar(console, "hapre [x]") as update:
        for step in range(1, 6):
            update(step, 5, "loss [0.25]")
    shown = console.file.getvalue()
    assert "hapre [x]" in shown and "5/5" in shown and "loss [0.25]" in shown


def test_progress_leaves_the_terminal_clean_after_an_error():
    console = _console(force_terminal=True)
    with pytest.raises(UserError), log.progress_bar(console, "hapre") as update:
        update(1, 5)
        raise UserError("the loss is not finite")
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is shown again


def test_say_prints_a_text_as_it_is():
    console = _console(width=20)
    text = "Everything is in runs/[bold]x[/bold]: 0.5, a long line that stays whole"
    log.say(console, text)
    assert console.file.getvalue() == text + "\n"


def test_tensorboard_gets_the_records(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is optional")
    metrics = log.MetricsLog(tmp_path, step=0, tensorboard=True)
    metrics.write("train", 3, {"task_loss": 0.25})
    metrics.write("key_areas", 3, {"boxes": [[0.0, 0.0, 1.0, 1.0]]})
    metrics.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/task_loss" in file.read_bytes()


def test_missing_tensorboard_is_said_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    expected = r"train.tensorboard needs tensorboardX: pip install 'hapre_jax\[tensorb"
    with pytest.raises(UserError, match=expected):
        log.import_tensorboard()
    with pytest.raises(UserError, match=expected):
        log.MetricsLog(tmp_path, step=0, tensorboard=True)
    assert not list(tmp_path.iterdir())
