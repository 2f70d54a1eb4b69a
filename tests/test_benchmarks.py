"""What benchmarks work out themselves; what they time is not a test's business."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"

HLO = """HloModule jit_step

%fused (param: f32[8]) -> f32[8] {
  %param = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} add(%param, %param)
}

ENTRY %main.1 (a: f32[2,3], b: bf16[4]) -> (f32[2,3], f32[8]) {
  %a = f32[2,3]{1,0} parameter(0)
  %b = bf16[4]{0} parameter(1), metadata={op_name="b"}
  %wide.1 = f32[8]{0} custom-call(%a, %b), custom_call_target="gemm"
  %fusion = f32[8]{0} fusion(%wide.1), kind=kLoop, calls=%fused
  %pair = (f32[2,3]{1,0}, u8[]) custom-call(%a), custom_call_target="conv"
  %first = f32[2,3]{1,0} get-tuple-element(%pair), index=0
  ROOT %out = (f32[2,3]{1,0}, f32[8]{0}) tuple(%first, %fusion)
}
"""


def _load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_traffic_is_what_kernels_read_and_write(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    # The product reads 24 + 8 bytes and writes 32; the fusion 32 and 32; the
    # convolution reads 24 and writes 24 + 1.
    assert _load("step").traffic(HLO) == 64 + 64 + 49


def test_largest_operations_of_a_trace(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    events = [
        {"ph": "X", "dur": 3000, "args": {"hlo_op": "conv.1"}},
        {"ph": "X", "dur": 5000, "args": {"hlo_op": "conv.12"}},
        {"ph": "X", "dur": 2000, "args": {"hlo_op": "add"}},
        {"ph": "X", "dur": 9000, "name": "python"},
        {"ph": "M", "args": {"hlo_op": "named"}},
    ]
    assert _load("step").largest(events, steps=2, rows=5) == [
        " 80.0%     4.000 ms     1 x conv",
        " 20.0%     1.000 ms     0 x add",
    ]


# The others need PyTorch to start.
@pytest.mark.parametrize(
    "name",
    ["step", "scaling", "skip_neighbors", "rematerialize", "gradients", "gpu_program"],
)
def test_benchmarks_say_what_they_take(name):
    said = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert "usage:" in said.stdout


def test_what_runs_out_of_time_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    step = _load("step")
    script = tmp_path / "endless.py"
    script.write_text("import time\nprint('{}', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(step, "__file__", str(script))
    contender = step.Contender("ours", "resnet18:1:224:float32", seconds=3.0)
    assert contender.read() == {}
    contender.time(1)  # waits for an answer
    assert contender.process.wait(timeout=60) == -9
    contender.time(1)
    contender.close()
    assert contender.times == []
