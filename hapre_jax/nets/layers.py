"""Layers that several networks share, as torchvision computes them."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.errors import check_choice
from hapre_jax.nets.convolution import convolve
from hapre_jax.nets.output import stages

NORMS = ("batch", "frozen", "group")
_GROUP = 8


class Norm(nn.Module):
    """Normalization with affine parameters and statistics in float32.

    `batch`: torchvision's BatchNorm, its running variance unbiased. `frozen`: the same
    parameters, but the stored statistics are used in training too, as batches of one
    image need. `group`: GroupNorm with 8 channels a group, or in one group where 8 does
    not divide them; no statistics.

    Attributes:
      kind: one of `NORMS`.
      dtype: of the computation.
      momentum: share of the old statistics that stays; 1 - momentum in PyTorch.
      scale_init: of the factor.
      epsilon: added to the variance of BatchNorm.
    """

    kind: str
    dtype: Any = jnp.float32
    momentum: float = 0.9
    scale_init: Any = nn.initializers.ones
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_choice("norm", self.kind, NORMS)
        if self.kind == "group":
            # As many groups as fit ResNet-8's narrowest stage twice; Wu and He, "Group
            # Normalization", find 8 to 32 channels a group alike.
            channels = x.shape[-1]
            return nn.GroupNorm(
                num_groups=None,
                group_size=_GROUP if channels % _GROUP == 0 else channels,
                dtype=self.dtype,
                scale_init=self.scale_init,
            )(x)
        updates = self.kind == "batch" and train and not self.is_initializing()
        old: Any = updates and dict(self.get_variable("batch_stats", "BatchNorm"))
        y = nn.BatchNorm(
            use_running_average=self.kind == "frozen" or not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            scale_init=self.scale_init,
            name="BatchNorm",
        )(x)
        if updates and self.is_mutable_collection("batch_stats"):
            # Flax keeps the biased variance of a batch, PyTorch the unbiased one.
            new: Any = self.get_variable("batch_stats", "BatchNorm")
            kept = self.momentum * old["var"]
            count = x.size // x.shape[-1]
            var = kept + (new["var"] - kept) * (count / max(count - 1, 1))
            self.put_variable("batch_stats", "BatchNorm", {**new, "var": var})
        return y

    def affine(self) -> tuple[jax.Array, jax.Array] | None:
        """Factor and shift `f32[C]` that it is in use; None without statistics."""
        if self.kind == "group" or self.is_initializing():
            return None
        params: Any = self.get_variable("params", "BatchNorm")
        statistics: Any = self.get_variable("batch_stats", "BatchNorm")
        factor = params["scale"] * jax.lax.rsqrt(statistics["var"] + self.epsilon)
        return factor, params["bias"] - statistics["mean"] * factor


class Convolution(nn.Module):
    """`convolve`, with the parameters of `nn.Conv`."""

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, affine: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """The convolution of `x` f32[B, H, W, C].

        Args:
          x: the features.
          affine: `f32[features]` each, a factor and a shift of the result.

        Raises:
          ValueError: it has a bias and is given a shift.
        """
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = x.astype(self.dtype)
        if affine is None:
            y = self._apply(x, kernel)
            if self.use_bias:
                bias = self.param("bias", nn.initializers.zeros, (self.features,))
                y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
            return y
        if self.use_bias:
            raise ValueError("a convolution with a bias takes no factor and shift")

        # On a GPU the factor is a part of the kernel, and the shift a bias that its
        # library adds before it writes the result. A CPU joins them itself, and
        # kernels may be larger than what they are applied to.
        def after(x, kernel, factor, shift):
            y = self._apply(x, kernel) * factor + shift
            return y.astype(self.dtype)

        def within(x, kernel, factor, shift):
            return self._apply(x, kernel * factor) + shift.astype(self.dtype)

        factor, shift = (numbers.reshape(1, 1, 1, -1) for numbers in affine)
        return jax.lax.platform_dependent(
            x, kernel, factor, shift, cpu=after, default=within
        )

    def _apply(self, x, kernel):
        return convolve(x, kernel.astype(self.dtype), self.stride)


def normalized(
    convolution: Convolution, norm: Norm, x: jax.Array, *, train: bool
) -> jax.Array:
    """`norm(convolution(x), train=train)`, in use in one pass over the features."""
    affine = None if train else norm.affine()
    if affine is None:
        return norm(convolution(x), train=train)
    return convolution(x, affine)


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    use_bias: bool = False,
    mode: Literal["fan_in", "fan_out"] = "fan_out",
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> Convolution:
    """A square convolution with PyTorch's padding, kernel // 2 on both sides.

    It starts as torchvision's `kaiming_normal_(mode=mode, nonlinearity="relu")`.
    """
    kernel_init = nn.initializers.variance_scaling(2.0, mode, "normal")
    return Convolution(
        features, kernel, stride, use_bias, kernel_init, dtype, name=name
    )


def stem_pool(x: jax.Array) -> jax.Array:
    """Max-pool 3x3 with stride 2 and padding 1, which halves H and W, rounded up.

    Along one side, then the other, each the largest of three strided slices: on CPUs
    the gradient of `nn.max_pool` takes four times as long, an eighth of the whole
    backward pass of a ResNet-18. Equal values of a window share their gradient.
    """
    for axis in (1, 2):
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (1, 1, 0)
        padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
        count = (x.shape[axis] + 1) // 2
        first, second, third = (
            jax.lax.slice_in_dim(padded, at, at + 2 * count - 1, 2, axis)
            for at in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """`x`, plus `name` of the collection "perturbations" where a caller gives one.

    The gradient with respect to the perturbation is the gradient with respect to the
    feature, which `hapre_jax.heatmap.grad_cam` needs.
    """
    if module.has_variable("perturbations", name):
        return x + module.get_variable("perturbations", name)
    return x


def head(num_classes: int, x: jax.Array) -> jax.Array:
    """Logits `f32[B, K]` of features `[B, h, w, C]`: a layer on their means.

    Without classes, for a trunk, there are no parameters and no logits: `f32[B, 0]`.
    """
    pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    if not num_classes:
        return pooled[:, :0]
    return nn.Dense(num_classes, name="head")(pooled)


def top_down(
    features: dict[str, jax.Array], *, grid: int, width: int, dtype: Any
) -> jax.Array:
    """A pyramid's features `f32[B, grid, grid, width]`, made in the calling module.

    Stages are merged top down (Lin et al., "Feature Pyramid Networks", 2017) from the
    coarsest to the coarsest one that still has `grid` cells a side.

    Args:
      features: "stage1".. of a trunk, `[B, h, w, c]` each.
      grid: cells a side.
      width: channels.
      dtype: of the computation.
    """

    def lateral(stage):
        convolve = nn.Conv(width, (1, 1), dtype=dtype, name=f"lateral_{stage}")
        return convolve(features[stage])

    *rest, top = stages(features)
    merged = lateral(top)
    for stage in reversed(rest):
        if merged.shape[1] >= grid:
            break
        finer = lateral(stage)
        merged = finer + jax.image.resize(merged, finer.shape, "nearest")
    shape = (merged.shape[0], grid, grid, width)
    merged = jax.image.resize(nn.relu(merged), shape, "linear")
    return nn.relu(nn.Conv(width, (3, 3), dtype=dtype, name="mix")(merged))
