import pytest

from hapre_jax import nets
from hapre_jax.nets import __main__ as table
from hapre_jax.nets import size as sizes


@pytest.mark.parametrize(
    ("name", "without_norms", "multiply_adds"),
    # torchvision's published GFLOPS, which count a multiply-add once.
    [
        ("resnet18", 11_168_451, 1.81),
        ("densenet121", 6_873_283, 2.83),
        ("vgg16", 134_272_835, 15.47),
    ],
)
def test_sizes(name, without_norms, multiply_adds):
    size = sizes.measure(name)
    assert size.without_norms == without_norms
    # XLA leaves out the multiplications with padding, up to a tenth.
    assert 0.9 < size.gflops[224] / (2 * multiply_adds) < 1.02
    assert 8 < size.gflops[640] / size.gflops[224] < 9.1  # (640 / 224)^2 = 8.2
    assert size.features["stage1"][2] in (64, 256)


def test_program_prints_every_network(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    known = sizes.Size(1234, 1000, {224: 1.0, 640: 8.0}, {"stage1": (56, 56, 64)})
    monkeypatch.setattr(table, "measure", lambda *args, **kwargs: known)
    assert table.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in nets.NETS:
        assert any(line.split()[1:2] == [name] for line in lines), name
