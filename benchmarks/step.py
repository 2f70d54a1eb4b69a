"""Times the whole HAPre-KRS step against the same step in PyTorch.

    python benchmarks/step.py            # what this machine can do in ten minutes
    python benchmarks/step.py --cases resnet18:1:640:float32 --compile
    python benchmarks/step.py --cases resnet18:1:640:float32 --trace trace

A case is NETWORK:BATCH:SIDE:TYPE. Each library has a process of its own, and the same
weights, images and boxes; what both say of the first step is compared. (Gradients
through the statistics of a batch differ most: there, PyTorch's float32 is further from
double precision than ours.) On a CPU their runs alternate, so that what else the
machine does meets both alike. On a GPU ours run alone, and then those of PyTorch, which
start together, as compiling takes them a minute, and are timed in turns. Ratios are
PyTorch's median time over ours, above 1 where we are faster; on a busy machine those of
processor time tell more, on one core (`taskset -c 0`), where threads do not wait for
each other. On a GPU they mean nothing.

Needs JAX, Flax, Optax, chex, NumPy and PyTorch, no package of data or pictures.

float32 is TF32 on a GPU in both libraries. The bound of a step is the larger of what
its operations take at the speed of a large matrix product and what the bytes of its
kernels take at the speed of a large copy, both measured here.
"""

import argparse
import collections
import dataclasses
import functools
import gzip
import json
import math
import operator
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time

# Where the package is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[1]))
# Both libraries need room on one device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

CLASSES, GRID, WIDTH = 3, 16, 64
RATES = (1e-5, 1e-6)  # of the paper, section 4.2
# One of each goal first; a run ends when its time is over.
GPU_CASES = (
    "resnet18:1:640:float32",
    "resnet18:32:224:bfloat16",
    "resnet18:32:640:bfloat16",
    "resnet50:1:640:float32",
    "resnet50:32:224:bfloat16",
    "resnet18:32:224:float32",
    "resnet18:1:640:bfloat16",
    "resnet50:32:640:bfloat16",
    "resnet18:32:640:float32",
    "resnet50:1:640:bfloat16",
    "resnet50:32:224:float32",
    "resnet50:32:640:float32",
)
CPU_CASES = ("resnet18:1:224:float32", "resnet18:4:224:float32")
# Relative, of losses and rewards, and of norms of gradients, which the statistics of a
# batch magnify; TF32 has 10 bits, bfloat16 7, over many layers.
TOLERANCE = {"cpu float32": (1e-3, 3e-2), "cuda float32": (3e-2, 0.1)}
ROUGH = (0.2, 0.5)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed."""

    net: str
    batch: int
    side: int
    dtype: str

    @classmethod
    def read(cls, text):
        """The case of NETWORK:BATCH:SIDE:TYPE."""
        net, batch, side, dtype = text.split(":")
        return cls(net, int(batch), int(side), dtype)

    @property
    def trains_statistics(self):
        """Those of one image are noise: the paper's setting keeps the stored ones."""
        return self.batch > 1


def inputs(case):
    """Images `u8[B, H, W]`, coarse shapes under noise, and labels `i64[B]`.

    Without noise, equal pixels would make ties, which max-pooling breaks by rounding.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 192, (case.batch, 16, 16), np.uint8)
    factor = -(-case.side // 16)
    image = np.kron(coarse, np.ones((factor, factor), np.uint8))
    image = image[:, : case.side, : case.side]
    image = image + rng.integers(0, 64, image.shape, np.uint8)
    return image, np.arange(case.batch) % CLASSES


# Contenders: each gives `run(steps)`, which returns what the last step said, and what
# else there is to tell.


def program(case, per_call=1):
    """Config, method and optimizer of our step."""
    from hapre_jax import config as config_lib
    from hapre_jax import optimization
    from hapre_jax.methods import hapre

    norm = "batch" if case.trains_statistics else "frozen"
    shared = {"net": case.net, "image_size": case.side, "norm": norm}
    shared["dtype"] = case.dtype
    config = config_lib.Config(
        data=config_lib.DataConfig(image_size=case.side),
        task=config_lib.TaskConfig(normalize="fixed", **shared),
        policy=config_lib.PolicyConfig(
            estimator="paper",
            explore=False,
            random_share=0.0,
            warmup_steps=0,
            grid=GRID,
            width=WIDTH,
            **shared,
        ),
        train=config_lib.TrainConfig(
            batch_size=case.batch,
            task_learning_rate=RATES[0],
            policy_learning_rate=RATES[1],
            schedule="constant",
            lr_warmup_steps=0,
            clip_norm=0.0,
            average_decay=0.0,
            policy_adam_b2=0.999,
            steps_per_call=per_call,
            steps=100 * per_call,
            eval_every=10 * per_call,
            checkpoint_every=10 * per_call,
            log_every=per_call,
        ),
    )
    method = hapre.make(config, CLASSES)
    return config, method, optimization.make_optimizer(config)


def our_batch(case, per_call=1):
    """What our step takes beside its state, on the host."""
    import numpy as np

    image, label = inputs(case)
    batch = {
        "image": image[..., None],
        "label": label.astype(np.int32),
        "index": np.arange(case.batch, dtype=np.int32),
    }
    return batch if per_call == 1 else (batch,) * per_call


def ours(case, per_call=1):
    """The step of `hapre_jax`, so many of them in one call."""
    from hapre_jax import freed_memory, xla_flags

    freed_memory.keep()  # as our programs do
    xla_flags.add()
    import jax
    import numpy as np

    from hapre_jax import train_state, train_step

    config, method, optimizer = program(case, per_call)
    like = train_state.blank(method, config)
    params, model_state = as_ours(case.net, like.params, like.model_state)
    now = train_state.TrainState(
        np.zeros((), np.int32),
        params,
        model_state,
        optimizer.init(params),
        (params, model_state),
    )
    now = jax.device_put(now, jax.devices()[0], may_alias=False)
    batch = jax.device_put(our_batch(case, per_call))
    step = train_step.make_step(method, optimizer, config)
    (root,) = step.args
    # Counted as written and for a CPU: XLA counts nothing for a GPU's libraries.
    with jax.default_device(jax.devices("cpu")[0]):
        shapes = jax.eval_shape(lambda *given: given, root, now, batch)
        operations = step.func.lower(*shapes).cost_analysis()["flops"]
    step = step.func.lower(root, now, batch).compile()
    memory = step.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    told = {
        "flops": operations,
        "bytes": traffic(step.as_text()),
        "peak": peak + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "device": jax.devices()[0].device_kind,
    }

    def run(steps):
        nonlocal now
        for _ in range(-(-steps // per_call)):
            now, metrics = step(root, now, batch)
        return {name: float(np.ravel(value)[0]) for name, value in metrics.items()}

    return run, lambda: told


def traffic(hlo):
    """Bytes that the instructions of a compiled step read and write, once each."""
    return sum(size for _, _, size in instructions(hlo))


def instructions(hlo):
    """Name, kind and bytes read and written of a compiled step's instructions.

    Those of the entry alone: a fusion's own instructions stay in registers. XLA's own
    count leaves out what a GPU's libraries do.
    """
    sizes = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
    sizes |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8}
    free = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")
    entry = hlo[hlo.index("\nENTRY ") :]
    results, found = {}, []
    for line in entry.splitlines()[1:]:
        match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)", line)
        if match is None:
            continue
        name, shape, kind, operands = match.groups()
        results[name] = sum(
            sizes.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        )
        if kind not in free:
            read = re.findall(r"%([\w.-]+)", operands)
            size = results[name] + sum(results.get(of, 0) for of in read)
            found.append((name, kind, size))
    return found


def as_ours(net, params, model_state):
    """Both networks' variables with the weights of PyTorch's."""
    import torch_step

    from hapre_jax import pretrained

    task, policy = torch_step.networks(net, grid=GRID, width=WIDTH, classes=CLASSES)

    def convert(model, params, model_state):
        tensors = {name: x.numpy() for name, x in model.state_dict().items()}
        loaded = pretrained.convert(tensors, net, params, model_state)
        return loaded.params, loaded.model_state

    def layer(conv):
        kernel = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        return {"kernel": kernel, "bias": conv.bias.detach().numpy()}

    new, new_state = {}, {}
    new["task"], new_state["task"] = convert(task, params["task"], model_state["task"])
    statistics = {key: tree["trunk"] for key, tree in model_state["policy"].items()}
    trunk, statistics = convert(policy.trunk, params["policy"]["trunk"], statistics)
    new["policy"] = {"trunk": trunk}
    new_state["policy"] = {key: {"trunk": tree} for key, tree in statistics.items()}
    for name in params["policy"]:
        if name.startswith("lateral_stage"):
            new["policy"][name] = layer(policy.lateral[int(name[-1]) - 1])
    new["policy"] |= {"mix": layer(policy.mix), "logits": layer(policy.logits)}
    return new, new_state


def theirs(case, mode=None):
    """The step of `torch_step`, compiled in a mode if one is given."""
    import torch
    import torch_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    task, policy = (
        net.to(device)
        for net in torch_step.networks(
            case.net, grid=GRID, width=WIDTH, classes=CLASSES
        )
    )
    image, label = (torch.from_numpy(array).to(device) for array in inputs(case))
    step = torch_step.Step(
        task,
        policy,
        image,
        label,
        size=case.side,
        train=case.trains_statistics,
        bfloat16=case.dtype == "bfloat16",
        rates=RATES,
    )
    if mode is not None:
        step.compile(mode)

    def norm(net):
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    said = {}

    def run(steps):
        if device == "cuda":  # of these steps, not of what it tried before
            torch.cuda.reset_peak_memory_stats()
        for _ in range(steps):
            metrics = step()
        if not said:  # the first step, which is compared
            metrics = metrics | {"grad_norm/task": norm(task)}
            metrics["grad_norm/policy"] = norm(policy)
        said.update({name: float(value) for name, value in metrics.items()})
        if device == "cuda":
            torch.cuda.synchronize()
        return dict(said)

    def tell():
        peak = None
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated()
            if mode == "reduce-overhead":  # a graph's own memory is not allocated
                peak = torch.cuda.max_memory_reserved()
        return {"peak": peak, "threads": torch.get_num_threads()}

    return run, tell


OURS = {
    "hapre_jax": ours,
    # `train.steps_per_call`: what helps where the host is too slow for a step.
    "20 steps a call": lambda case: ours(case, 20),
}
CONTENDERS = OURS | {
    "eager": theirs,
    "compiled": lambda case: theirs(case, "default"),
    # CUDA graphs: what helps where a step is so short that its launches cost most.
    "reduce-overhead": lambda case: theirs(case, "reduce-overhead"),
}


def ceilings(dtype):
    """Operations a second of a large product, bytes a second of a large copy."""
    import jax
    import jax.numpy as jnp

    is_cpu = jax.default_backend() == "cpu"
    side, length = (2048, 1 << 25) if is_cpu else (8192, 1 << 28)
    # Of random numbers: equal ones draw less power, and are multiplied faster.
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    x = jax.random.normal(jax.random.key(1), (length,), jnp.float32)

    def best(function, value, repeat):
        function = jax.jit(function)
        function(value).block_until_ready()
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            function(value).block_until_ready()
            times.append(time.perf_counter() - start)
        return min(times)

    product = best(lambda a: a @ a, a, 10)
    copy = best(lambda x: x + 1, x, 10)
    return {"flops": 2 * side**3 / product, "bytes": 2 * x.nbytes / copy}


def serve(name, case):
    """The process of one contender: for each number of steps read, the seconds."""
    start = time.perf_counter()
    if name == "ceilings":
        say(ceilings(case.dtype))
        return
    run, tell = CONTENDERS[name](case)
    first, start = run(1), time.perf_counter() - start
    run(2)  # warms up, before others are timed
    say({"first": first, "start": start})
    for line in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        run(int(line))
        said = {"seconds": (time.perf_counter() - start) / int(line)}
        said["busy"] = (time.process_time() - busy) / int(line)
        say(said | tell())


def trace(text, folder, *, rows=15):
    """Profiles our step: what a viewer of traces opens, and its largest operations.

    Returns:
      Lines: share of the time of all operations, milliseconds a step, how often, name.
    """
    import jax

    steps = 3
    run, _ = ours(Case.read(text))
    run(steps)
    with jax.profiler.trace(folder):
        run(steps)
    (newest,) = sorted(pathlib.Path(folder).rglob("*.trace.json.gz"))[-1:]
    with gzip.open(newest) as file:
        events = json.load(file)["traceEvents"]
    return [f"{newest}", *largest(events, steps, rows)]


def largest(events, steps, rows):
    """The operations of a trace that take longest; numbers in names do not count."""
    spent, counts = collections.Counter(), collections.Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if name and event.get("ph") == "X":
            name = re.sub(r"[.\d]+$", "", name)
            spent[name] += event["dur"] / 1e3 / steps
            counts[name] += 1
    total = sum(spent.values())
    return [
        f"{took / total:6.1%} {took:9.3f} ms {counts[name] // steps:5} x {name}"
        for name, took in spent.most_common(rows)
    ]


def say(values):
    """A line of JSON for the parent process."""
    print(json.dumps(values), flush=True)


class Contender:
    """A process of one library with one case, which ends `seconds` from now at last."""

    def __init__(self, name, text, seconds=600.0):
        self.name, self.times, self.busy, self.told = name, [], [], {}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.end = threading.Timer(max(seconds, 0.0), self.process.kill)
        self.end.start()

    def read(self):
        """What it says next; None where it failed, for want of memory or time."""
        for line in self.process.stdout:
            if line.startswith("{"):  # not what a library prints
                return json.loads(line)
        return None

    def time(self, steps):
        """Adds one run to the times."""
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except OSError:  # its process has ended
            return
        if said := self.read():
            self.told = said
            self.times.append(said["seconds"])
            self.busy.append(said["busy"])

    def close(self):
        """Ends the process."""
        self.end.cancel()
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def differences(first, reference):
    """Largest relative difference of losses, and of gradients, of two first steps."""
    found = {"losses": 0.0, "gradients": 0.0}
    for name, value in reference.items():
        kind = "gradients" if name.startswith("grad") else "losses"
        # D1 is the difference of two losses of about the task network's size.
        size = abs(reference["task_loss"] if name == "d1" else value)
        found[kind] = max(found[kind], abs(first[name] - value) / size)
    return found


def compare(text, names, *, rounds, steps, device, stop_at):
    """All contenders on one case: name to medians and what was told.

    What is not done at the time `stop_at` is left out.
    """
    case, results, firsts = Case.read(text), {}, {}

    def start(names):
        """Processes that have all done their first step."""
        contenders = [
            Contender(name, text, stop_at - time.perf_counter()) for name in names
        ]
        for contender in contenders:
            if said := contender.read():
                firsts[contender.name] = said["first"]
                contender.start = said["start"]
        return contenders

    def finish(contenders):
        for _ in range(rounds):
            for contender in contenders:
                contender.time(steps)
        for contender in contenders:
            contender.close()
            if contender.times:
                results[contender.name] = {
                    **contender.told,
                    "seconds": statistics.median(contender.times),
                    "busy": statistics.median(contender.busy),
                    "start": contender.start,
                }

    if device == "cpu":
        finish([contender for name in names for contender in start([name])])
    else:
        mine = [[name] for name in names if name in OURS]
        for group in (*mine, [name for name in names if name not in OURS]):
            finish(start(group))
    if "hapre_jax" in firsts and "eager" in firsts:
        results["differences"] = differences(firsts["hapre_jax"], firsts["eager"])
        found = results["differences"].values()
        limits = TOLERANCE.get(f"{device} {case.dtype}", ROUGH)
        results["is_same"] = all(map(operator.le, found, limits))
    return {"case": text, "ceilings": ceilings_of(case.dtype), **results}


@functools.cache
def ceilings_of(dtype):
    """`ceilings`, in a process of its own, which frees the device's memory."""
    contender = Contender("ceilings", f"resnet18:1:224:{dtype}")
    found = contender.read()
    contender.close()
    return found


def show(result):
    """Lines about one case."""
    case, mine = Case.read(result["case"]), result.get("hapre_jax")
    print(f"\n{case.net}, batch {case.batch}, {case.side} x {case.side}, {case.dtype}")
    if mine is None:
        print("  hapre_jax failed; see above")
        return
    limits, seconds = result["ceilings"], mine["seconds"]
    arithmetic, copying = (
        mine["flops"] / limits["flops"],
        mine["bytes"] / limits["bytes"],
    )
    bound = max(arithmetic, copying)
    print(
        f"  {mine['device']}: {limits['flops'] / 1e12:.2f} TFLOP/s in a product, "
        f"{limits['bytes'] / 1e9:.0f} GB/s in a copy; a step has "
        f"{mine['flops'] / 1e9:.1f} GFLOP and {mine['bytes'] / 1e9:.2f} GB"
    )
    if "differences" in result:
        losses, gradients = result["differences"].values()
        print(
            f"  first steps differ by {losses:.1e} in losses, {gradients:.1e} in norms "
            f"of gradients{'' if result['is_same'] else ': NOT THE SAME COMPUTATION'}"
        )
    for name in CONTENDERS:
        if name not in result:
            continue
        it = result[name]
        peak = "" if it["peak"] is None else f", {it['peak'] / 2**30:.2f} GiB"
        print(
            f"  {name:16}{1e3 * it['seconds']:9.1f} ms, "
            f"{case.batch / it['seconds']:8.1f} images/s, "
            f"{mine['flops'] / it['seconds'] / 1e12:7.2f} TFLOP/s, "
            f"ratio {it['seconds'] / seconds:5.2f} "
            f"(of processor time {it['busy'] / mine['busy']:5.2f}), "
            f"start {it['start']:.0f} s{peak}"
        )
    print(
        f"  hapre_jax reaches {arithmetic / seconds:.0%} of the product's speed, "
        f"{copying / seconds:.0%} of the copy's, {bound / seconds:.0%} of the bound",
        flush=True,
    )


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", help="as resnet18:32:224:bfloat16")
    parser.add_argument("--compile", action="store_true", help="on a CPU too")
    parser.add_argument("--rounds", type=int, default=5, help="runs (default 5)")
    parser.add_argument("--steps", type=int, help="a run (default 1, 20 on a GPU)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=7,
        help="start no case later, and stop what is still at work two minutes after "
        "(default 7)",
    )
    parser.add_argument("--out", help="file for the results as JSON lines")
    parser.add_argument("--trace", metavar="DIR", help="profile our step, time nothing")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], Case.read(arguments.serve[1]))
        return
    if arguments.trace:
        for text in arguments.cases or CPU_CASES[:1]:
            folder = pathlib.Path(arguments.trace, text.replace(":", "-"))
            print(text, *trace(text, str(folder)), sep="\n  ", flush=True)
        return
    start_until = time.perf_counter() + 60 * arguments.minutes
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ["hapre_jax", "eager"]
    if device == "cuda" or arguments.compile:
        names += ["compiled"]
    cases = arguments.cases or (CPU_CASES if device == "cpu" else GPU_CASES)
    for text in cases:
        if time.perf_counter() > start_until:
            print(f"\nout of time before {text}; --cases {text} runs it")
            continue
        extra = ["20 steps a call", "reduce-overhead"]
        is_short = device == "cuda" and ":1:" in text
        result = compare(
            text,
            names + extra * is_short,
            rounds=arguments.rounds,
            steps=arguments.steps or (1 if device == "cpu" else 20),
            device=device,
            stop_at=start_until + 120,
        )
        show(result)
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
