import dataclasses
import json
import pathlib
import runpy

import pytest
from tiny import shrink

from hapre_jax import config, config_file
from hapre_jax.config import Config
from hapre_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py"))


@dataclasses.dataclass(frozen=True)
class Section:
    """Types that no field of `Config` has at present."""

    limit: int | None = config.option(None, "None or a count.", at_least=1)
    rates: tuple[int, ...] = config.option((1, 2), "Counts.", at_most=9)
    share: float = config.option(0.5, "A share.", above=0, at_most=1)


# Options.


def test_every_field_has_one_line_of_help_and_an_accepted_default():
    options = config.options(Config())
    assert {"seed", "data.root", "task.net", "policy.sigma", "train.steps"} <= set(
        options
    )
    for path, field in options.items():
        assert field.path == path
        assert field.help.endswith(".") and "\n" not in field.help
        assert field.accepts(field.value)


def test_options_follow_the_order_of_declaration():
    paths = list(config.options(Config()))
    assert paths[:3] == ["method", "seed", "data.name"]
    assert paths[-1] == "compare_plain"


@pytest.mark.parametrize(
    ("path", "accepted"),
    [
        ("train.steps", "an integer >= 1 and <= 1000000000"),
        ("policy.balance", "a number >= 0 and <= 1"),
        ("policy.alpha", "a number > 1"),
        ("policy.held_out", "a number >= 0 and <= 0.9"),
        ("policy.explore", "true or false"),
        ("policy.readout", "one of moments, anchors, max_sum"),
        ("baseline.crop_area", "a number > 0 and <= 1"),
        ("data.root", "a text"),
        ("data.geometry", "one of letterbox, squash, cover"),
        ("data.split_fractions", "numbers separated by commas, each > 0"),
    ],
)
def test_accepted_values_in_words(path, accepted):
    assert config.options(Config())[path].accepted == accepted


@pytest.mark.parametrize(
    ("name", "value", "accepts"),
    [
        ("limit", None, True),
        ("limit", 1, True),
        ("limit", 0, False),
        ("limit", 1.0, False),
        ("limit", True, False),
        ("rates", (9,), True),
        ("rates", (1, 10), False),
        ("rates", [1], False),
        ("rates", (1.5,), False),
        ("share", 1, True),
        ("share", 0, False),
        ("share", 1.0001, False),
        ("share", True, False),
        ("share", "0.5", False),
        ("share", float("nan"), False),
    ],
)
def test_accepts(name, value, accepts):
    assert config.options(Section())[name].accepts(value) is accepts


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("limit", "none", None), ("limit", "7", 7), ("rates", "(3, 4)", (3, 4))],
)
def test_read(name, text, value):
    assert config.options(Section())[name].read(text) == value


def test_read_names_the_value_and_what_is_accepted():
    with pytest.raises(UserError) as error:
        config.options(Section(), "x.")["x.limit"].read("0")
    assert str(error.value) == "x.limit is 0, but must be none or an integer >= 1"


# Checks.


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
    assert hash(Config()) == hash(Config())
    assert Config() != Config(seed=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: config.TrainConfig(steps="9"),
            "train.steps is '9', but must be an integer >= 1 and <= 1000000000",
        ),
        (
            lambda: config.PolicyConfig(image_size=100, grid=16),
            "policy.image_size is 100, but must be a multiple of policy.grid, which "
            "is 16",
        ),
        (
            lambda: config.PolicyConfig(samples=3),
            "policy.samples is 3, but must be even",
        ),
        (
            lambda: config.PolicyConfig(min_side=0.6, max_side=0.5),
            "policy.min_side is 0.6, but must be at most policy.max_side, which is 0.5",
        ),
        (
            lambda: config.PolicyConfig(readout="max_sum"),
            "policy.estimator is reinforce, but policy.readout max_sum has no "
            "gradient: it takes paper or elite, which imitate",
        ),
        (
            lambda: config.PolicyConfig(estimator="pathwise", readout="max_sum"),
            "policy.estimator is pathwise, but policy.readout max_sum has no gradient",
        ),
        (
            lambda: config.PolicyConfig(estimator="paper", operation="none"),
            "policy.estimator is paper, which tries neighbors of an action, but "
            "policy.operation none has no action",
        ),
        (
            lambda: Config(
                method="mixup", train=config.TrainConfig(batch_size=4, parts=4)
            ),
            "train.parts is 4, as train.batch_size, but method mixup mixes the images "
            "of a part, which must be two or more",
        ),
        (
            lambda: Config(
                policy=config.PolicyConfig(held_out=0.5),
                train=config.TrainConfig(batch_size=4, parts=2),
            ),
            "policy.held_out is 0.5 and train.parts 2: parts with other shares of "
            "held-out films would count alike; one of the two must be left at its "
            "default",
        ),
        (
            lambda: config.TrainConfig(steps_per_call=20),
            "train.eval_every is 250, but must be a multiple of train.steps_per_call, "
            "which is 20",
        ),
        (
            lambda: config.TrainConfig(batch_size=9, parts=2),
            "train.batch_size is 9, but must be a multiple of train.parts, which is 2",
        ),
        (
            lambda: Config(
                task=config.TaskConfig(net="vgg16", image_size=32),
                policy=config.PolicyConfig(probe_size=16),
            ),
            "policy.probe_size is 16, but vgg16 halves it five times and must have at "
            "least 32",
        ),
        (
            lambda: Config(method="lungs"),
            "method is 'lungs', but must be one of hapre, plain, random_crop, "
            "true_lungs",
        ),
        (
            lambda: config.BaselineConfig(lung_scale=0.0),
            "baseline.lung_scale is 0.0, but must be a number > 0",
        ),
        (
            lambda: config.DataConfig(split_fractions=(0.7, 0.1, 0.3)),
            "data.split_fractions is (0.7, 0.1, 0.3), but must be three numbers that "
            "sum to 1",
        ),
        (
            lambda: config.DataConfig(split_fractions=(0.5, 0.5)),
            "data.split_fractions is (0.5, 0.5), but must be three numbers that sum "
            "to 1",
        ),
        (lambda: Config(seed=-1), "seed is -1, but must be an integer >= 0 and <= "),
        (lambda: Config(data="phantom"), "data is 'phantom', but must be a section"),
        (lambda: Config(data=config.TaskConfig()), "data is TaskConfig("),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("estimator", ["paper", "elite"])
def test_max_sum_is_for_estimators_that_imitate(estimator):
    texts = {"policy.readout": "max_sum", "policy.estimator": estimator}
    assert config.override_all(Config(), texts).policy.readout == "max_sum"


# Overrides.


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "3", 3),
        ("train.steps", "1_000", 1000),
        ("policy.sigma", "7", 7.0),
        ("train.task_learning_rate", "3e-4", 3e-4),
        ("policy.explore", "false", False),
        ("compare_plain", "False", False),
        ("data.flip", "none", "none"),
        ("data.root", "a b,c", "a b,c"),
        ("data.split_fractions", "0.6,0.2,0.2", (0.6, 0.2, 0.2)),
    ],
)
def test_override_reads_the_text_as_the_field_s_type(path, text, value):
    before = Config()
    after = config.override(before, path, text)
    field = config.options(after)[path]
    assert field.value == value and type(field.value) is type(value)
    others = config.options(before)
    assert {k for k, v in config.options(after).items() if v != others[k]} <= {path}


def test_text_of_a_value_is_read_back():
    values = config_file.load("configs/hapre_krs.py")
    texts = {k: config.to_text(v.value) for k, v in config.options(values).items()}
    assert config.override_all(Config(), texts) == values


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (
            "train.steps",
            "many",
            "train.steps is 'many', but must be an integer >= 1 and <= 1000000000",
        ),
        (
            "train.steps",
            "1.5",
            "train.steps is '1.5', but must be an integer >= 1 and <= 1000000000",
        ),
        (
            "train.steps",
            "0",
            "train.steps is 0, but must be an integer >= 1 and <= 1000000000",
        ),
        ("policy.explore", "1", "policy.explore is '1', but must be true or false"),
        ("policy.sigma", "inf", "policy.sigma is inf, but must be a number > 0"),
        (
            "task.net",
            "resnet9",
            "task.net is 'resnet9', but must be one of resnet8, resnet14, resnet20, "
            "resnet10, resnet18, resnet34, resnet50",
        ),
        (
            "trian.steps",
            "1",
            "config has no field trian.steps; did you mean train.steps?",
        ),
        ("train", "1", "config has no field train; --help lists all"),
        ("train.steps.x", "1", "config has no field train.steps.x; did you mean "),
    ],
)
def test_override_refuses(path, text, message):
    with pytest.raises(UserError) as error:
        config.override(Config(), path, text)
    assert str(error.value).startswith(message)


def test_overrides_are_checked_together():
    texts = {"policy.grid": "12", "policy.image_size": "48"}
    policy = config.override_all(Config(), texts).policy
    assert (policy.grid, policy.image_size) == (12, 48)
    with pytest.raises(UserError, match=r"multiple of policy\.grid"):
        config.override(Config(), "policy.grid", "500")


def test_nearest_prefers_the_same_field_of_another_section():
    names = list(config.options(Config()))
    assert config.nearest("image_size", names) == [
        "data.image_size",
        "task.image_size",
        "policy.image_size",
    ]
    assert config.nearest("train.step", names)[0] == "train.steps"
    assert config.nearest("zzz", names) == []


# Dictionaries.


@pytest.mark.parametrize("file", FILES)
def test_json_round_trip(file):
    values = config_file.load(file)
    text = json.dumps(config.to_dict(values))
    assert config.from_dict(json.loads(text)) == values
    assert json.loads(text) == config.to_dict(values)


def test_from_dict_keeps_defaults_for_what_is_missing():
    made = config.from_dict({"seed": 5, "train": {"steps": 7}})
    assert made == Config(seed=5, train=config.TrainConfig(steps=7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sede": 1}, "config has no field sede; did you mean seed?"),
        (
            {"train": {"stepz": 1}},
            "config has no field train.stepz; did you mean train.steps?",
        ),
        ({"train": 3}, "train is 3, but must be a section"),
        (
            {"train": {"steps": 1.5}},
            "train.steps is 1.5, but must be an integer >= 1 and <= 1000000000",
        ),
        ({"data": {"root": None}}, "data.root is None, but must be a text"),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(UserError) as error:
        config.from_dict(values)
    assert str(error.value) == message


# Files.


def _write(folder, text, name="x.py"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("file", FILES)
def test_config_files_load_from_anywhere(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(config_file.load(file), Config)
    assert file in config_file.available()


@pytest.mark.parametrize("file", FILES)
def test_config_files_say_how_to_run_them(file):
    text = (ROOT / file).read_text()
    commands = (
        f"Command:  python -m hapre_jax.train --config {file}",
        f"Command:  python launch/grid.py --config {file}",
        # Of another task: its program, whose default it may be.
        f"Command:  python launch/{pathlib.Path(file).name} ",
    )
    assert any(command in text for command in commands)
    assert "Hardware: " in text and "Expected result: " in text


@pytest.mark.parametrize("file", FILES)
def test_tiny_shrinks_and_keeps_the_experiment(file):
    full = config_file.load(file)
    tiny = shrink(full)
    assert tiny.data.name == "phantom" and tiny.data.train_images <= 48
    assert tiny.train.steps <= 6
    assert tiny.task.image_size == tiny.policy.image_size == 16
    assert tiny.train.batch_size == (1 if full.train.batch_size == 1 else 4)
    kept = (
        "method data.geometry data.flip data.quality task.norm task.normalize "
        "task.dtype policy.norm policy.estimator policy.explore policy.alpha "
        "train.schedule train.clip_norm train.task_learning_rate compare_plain"
    )
    before, after = config.options(full), config.options(tiny)
    for path in kept.split():
        assert after[path].value == before[path].value


def test_hapre_krs_is_what_the_paper_states():
    values = config_file.load("configs/hapre_krs.py")
    assert values.task.net == values.policy.net == "resnet18"
    sizes = values.data.image_size, values.task.image_size, values.policy.image_size
    assert sizes == (640, 640, 640)
    assert values.data.geometry == "squash"
    assert (values.data.flip, values.data.flip_probability) == ("vertical", 0.5)
    assert values.train.batch_size == 1
    rates = values.train.task_learning_rate, values.train.policy_learning_rate
    assert rates == (1e-5, 1e-6)
    assert values.policy.estimator == "paper"


def test_phantom_paper_differs_from_phantom_in_the_learning_rule_alone():
    phantom = config_file.load("configs/phantom.py")
    paper = config_file.load("configs/phantom_paper.py")
    assert paper.policy.estimator == "paper" != phantom.policy.estimator
    rule = {
        "policy.estimator": "paper",
        "policy.warmup_steps": "0",
        "policy.random_share": "0",
    }
    assert config.override_all(phantom, rule) == paper


def test_load_passes_the_argument(tmp_path):
    path = _write(
        tmp_path,
        "from hapre_jax.config import Config, DataConfig\n"
        "def get_config(quality='high'):\n"
        "    return Config(data=DataConfig(quality=quality))\n",
    )
    assert config_file.load(str(path)).data.quality == "high"
    assert config_file.load(f"{path}:low").data.quality == "low"


def test_load_prefers_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    text = (
        "from hapre_jax.config import Config\ndef get_config(): return Config(seed=9)"
    )
    _write(tmp_path / "configs", text, "phantom.py")
    assert config_file.load("configs/phantom.py").seed == 0
    monkeypatch.chdir(tmp_path)
    assert config_file.load("configs/phantom.py").seed == 9


@pytest.mark.parametrize(
    ("row", "method", "net"),
    [
        ("resnet", "plain", "resnet8"),
        ("cbam", "plain", "resnet8+cbam"),
        ("danet", "plain", "resnet8+danet"),
        ("two_stage", "two_stage", "resnet8"),
    ],
)
def test_rows_of_the_baselines(row, method, net):
    loaded = config_file.load(f"configs/baselines.py:{row}")
    assert (loaded.method, loaded.task.net) == (method, net)
    phantom = config_file.load("configs/phantom.py")
    assert (loaded.train, loaded.data) == (phantom.train, phantom.data)
    assert not loaded.compare_plain


def test_every_method_is_a_row_of_the_baselines():
    rows = runpy.run_path(str(ROOT / "configs" / "baselines.py"))["ROWS"]
    loaded = [config_file.load(f"configs/baselines.py:{row}") for row in rows]
    methods = set(config.options(Config())["method"].choices)
    assert {of.method for of in loaded} == methods
    assert not any(of.compare_plain for of in loaded)


@pytest.mark.parametrize("source", ["phantom", "ped_pneumonia", "ped_pneumonia_low"])
def test_rows_of_the_baselines_share_the_recipe_of_a_source(source):
    loaded = config_file.load(f"configs/baselines.py:mixup@{source}")
    recipe = config_file.load(f"configs/hapre_krs_best.py:{source}")
    changes = {"method": "mixup", "compare_plain": False}
    assert loaded == dataclasses.replace(recipe, **changes)
    with pytest.raises(UserError, match="there is no baseline mixdown"):
        config_file.load(f"configs/baselines.py:mixdown@{source}")


def test_recipe_of_each_source():
    recipe = "configs/hapre_krs_best.py"
    assert config_file.load(recipe) == config_file.load("configs/phantom.py")
    low, whole = (
        config_file.load(f"{recipe}:{name}")
        for name in ("ped_pneumonia_low", "ped_pneumonia")
    )
    assert (low.data.degrade, whole.data.degrade) == ("low", "none")
    assert (low.policy.area_cost, low.policy.final_area_cost) == (0.5, 0.1)
    assert (whole.policy.area_cost, whole.policy.final_area_cost) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("configs/baselines.py:cutmx", "there is no baseline cutmx; there are resnet,"),
        (
            "configs/hapre_krs_best.py:nih",
            "there is no recipe for nih, but for phantom",
        ),
    ],
)
def test_unknown_argument_of_a_config(spec, sentence):
    with pytest.raises(UserError, match=sentence):
        config_file.load(spec)


def test_load_finds_the_configs_of_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "hapre_jax"
    (package / "configs").mkdir(parents=True)
    text = (
        "from hapre_jax.config import Config\ndef get_config(): return Config(seed=8)"
    )
    _write(package / "configs", text, "packaged.py")
    monkeypatch.setattr(config_file, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    assert config_file.load("configs/packaged.py").seed == 8
    assert config_file.available() == ["configs/packaged.py"]


def test_load_reads_a_run_s_json(tmp_path):
    values = Config(seed=4)
    path = _write(tmp_path, json.dumps(config.to_dict(values)), "config.json")
    assert config_file.load(str(path)) == values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.py", "y = 1", "it has no function get_config"),
        ("x.py", "get_config = 1", "it has no function get_config"),
        ("x.py", "\n1 / 0", "fails in line 2 with ZeroDivisionError: division by zero"),
        ("x.py", "def get_config():\n\n  return z", "fails in line 3 with NameError: "),
        ("x.py", "def get_config(:", "fails with SyntaxError: "),
        ("x.py", "def get_config(): return 3", "get_config returned 3, which is no "),
        ("x.py", "def get_config(a): pass", "get_config needs an argument"),
        (
            "x.py",
            "from hapre_jax.config import Config\n"
            "def get_config(): return Config(seed=-1)",
            "seed is -1, but must be ",
        ),
        ("x.json", "{", "cannot be read: "),
        ("x.json", "[1]", "holds no fields"),
        ("x.json", '{"sede": 1}', "config has no field sede; did you mean seed?"),
        ("x.yaml", "seed: 1", "must be a .py file, or a run's config.json"),
    ],
)
def test_load_says_what_is_wrong_with_a_file(tmp_path, name, text, message):
    path = _write(tmp_path, text, name)
    with pytest.raises(UserError) as error:
        config_file.load(str(path))
    assert str(error.value).startswith(f"config file {path}")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_load_refuses_an_argument_that_the_file_does_not_take(tmp_path):
    text = "from hapre_jax.config import Config\ndef get_config(): return Config()"
    with pytest.raises(UserError, match="takes no argument, got 'low'$"):
        config_file.load(f"{_write(tmp_path, text)}:low")


def test_load_lists_the_files_that_there_are():
    with pytest.raises(UserError) as error:
        config_file.load("configs/fantom.py")
    assert "'configs/fantom.py'" in str(error.value)
    assert "configs/phantom.py, " in str(error.value)
