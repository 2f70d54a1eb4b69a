"""From a JAX function to an ONNX model, for software that runs no JAX.

The function is traced for a symbolic batch, what depends on constants alone is
computed, and each primitive that is left becomes one of ONNX's standard operators. All
networks of `nets`, key areas and their crops are made of those that are known here.
"""

import string
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from jax.extend import core
from onnx import helper, numpy_helper

from hapre_jax.errors import UserError

# Of 2022, which hospitals' runtimes read: onnxruntime 1.12, TensorRT 8.6 and later.
_OPSET, _IR_VERSION = 17, 8
_BATCH = "batch"

_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "not": "Not",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
_BINARY = {
    "add": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "or": "Or",
    "pow": "Pow",
    "sub": "Sub",
}
_ALIASES = ("copy", "optimization_barrier", "stop_gradient")
_REDUCTIONS = {"reduce_max": "Max", "reduce_min": "Min", "reduce_prod": "Prod"}
_WINDOWS = {"reduce_window_max": "MaxPool", "reduce_window_sum": "AveragePool"}
_ELEMENTWISE = {*_UNARY, *_BINARY, *_ALIASES, "convert_element_type", "integer_pow"}
_ELEMENTWISE |= {"log1p", "ne", "rem", "rsqrt", "select_n", "square"}


class _Linear(NamedTuple):
    """A convolution, or a product of matrices, that an affine map may still join."""

    operator: str  # "Conv", weight [O, I, h, w]; or "Gemm", weight [I, O]
    x: str
    weight: np.ndarray
    bias: np.ndarray  # [O]
    attributes: dict

    def affine(self, factor: np.ndarray, offset: np.ndarray) -> "_Linear":
        """Followed by `factor` and `offset` of each output channel."""
        shape = (-1, 1, 1, 1) if self.operator == "Conv" else (-1,)
        weight = self.weight * np.reshape(factor, shape)
        return self._replace(weight=weight, bias=self.bias * factor + offset)


class _Value:
    """A tensor: constant, named in the graph, or a `_Linear` that is not written yet.

    Its shape may have 1 where JAX's has more: ONNX broadcasts by itself, and only some
    operators need the whole of it.
    """

    def __init__(self, shape, *, name=None, array=None, linear=None):
        self.shape = tuple(shape)
        self.name = name
        self.array = array
        self.linear = linear


def convert(
    function: Callable[..., dict[str, jax.Array]],
    inputs: dict[str, jax.ShapeDtypeStruct],
    *,
    description: str = "",
) -> onnx.ModelProto:
    """The ONNX model of a function whose weights are constants.

    Args:
      function: of arrays in the order of `inputs`, `[B, ...]` each, to a dictionary of
        outputs `[B, ...]`.
      inputs: shapes and types without the batch, by name.
      description: the model's text.

    Raises:
      UserError: it uses an operation that is not known here.
    """
    (batch,) = export.symbolic_shape(_BATCH)
    shapes = [
        jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in inputs.values()
    ]
    traced, outputs = jax.make_jaxpr(function, return_shape=True)(*shapes)
    graph = _Graph(next(iter(inputs)))
    arguments = [
        _Value(shape.shape, name=name)
        for name, shape in zip(inputs, shapes, strict=True)
    ]
    results = graph.run(traced.jaxpr, traced.consts, arguments)
    for name, value, variable in zip(
        sorted(outputs), results, traced.jaxpr.outvars, strict=True
    ):
        graph.emit("Identity", [graph.whole(value, variable.aval)], name=name)
    nodes = _needed(graph.nodes, outputs)
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "hapre_jax",
        [_info(name, shape) for name, shape in zip(inputs, shapes, strict=True)],
        [_info(name, outputs[name]) for name in sorted(outputs)],
        [one for one in graph.initializers if one.name in used],
    )
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="hapre_jax",
        # Names of folders, and so of classes, need not be UTF-8.
        doc_string=description.encode("utf-8", "backslashreplace").decode(),
    )
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def _needed(nodes, outputs) -> list[onnx.NodeProto]:
    """The nodes on which the outputs depend, in the same order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _info(name, aval) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, _onnx_type(aval.dtype), shape)


def _onnx_type(dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Graph:
    """Nodes in the order of computation."""

    def __init__(self, first_input: str):
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._first_input = first_input
        self._batch_size: str | None = None
        self._count = 0

    def run(self, jaxpr, constants, arguments) -> list[_Value]:
        """The outputs of a function of `_Value`s."""
        values: dict[Any, _Value] = {}
        uses: dict[Any, int] = {}
        for variables in (*(e.invars for e in jaxpr.eqns), jaxpr.outvars):
            for variable in variables:
                if not isinstance(variable, core.Literal):
                    uses[variable] = uses.get(variable, 0) + 1

        def read(variable):
            if isinstance(variable, core.Literal):
                return _constant(variable.val)
            return values[variable]

        values.update(zip(jaxpr.constvars, map(_constant, constants), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            read_values = [read(variable) for variable in equation.invars]
            # What another one also reads must exist by itself.
            for variable, value in zip(equation.invars, read_values, strict=True):
                if value.linear is not None and uses[variable] > 1:
                    self.name(value)
            results = self._apply(equation, read_values)
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def emit(self, operator, inputs, *, name=None, **attributes) -> str:
        """Adds a node; the name of its output."""
        if name is None:
            self._count += 1
            name = f"{operator.lower()}_{self._count}"
        self.nodes.append(
            helper.make_node(operator, inputs, [name], name=f"{name}:", **attributes)
        )
        return name

    def constant(self, array) -> str:
        """The name of a constant."""
        self._count += 1
        name = f"constant_{self._count}"
        # Of as many axes as it has: scalars are arrays of none.
        array = np.asarray(array, order="C")
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def name(self, value: _Value) -> str:
        """The name of a tensor, of the value's own shape."""
        if value.name is None and value.linear is not None:
            value.name = self._write(value.linear)
            value.linear = None
        elif value.name is None:
            value.name = self.constant(value.array)
        return value.name

    def whole(self, value: _Value, aval) -> str:
        """The name of a tensor of all of the shape that JAX gives it."""
        name = self.name(value)
        if value.shape == tuple(aval.shape):
            return name
        return self.emit("Expand", [name, self._shape(aval.shape)])

    def _shape(self, shape) -> str:
        """The name of a shape."""
        if all(isinstance(size, int) for size in shape):
            return self.constant(np.array(shape, np.int64))
        if self._batch_size is None:
            every = self.emit("Shape", [self._first_input])
            self._batch_size = self.emit("Slice", [every, *self._numbers([0], [1])])
        parts = []
        for size in shape:
            if isinstance(size, int):
                parts.append(self.constant(np.array([size], np.int64)))
            elif str(size) == _BATCH:
                parts.append(self._batch_size)
            else:
                raise UserError(f"a size of {size} cannot be written as ONNX")
        return self.emit("Concat", parts, axis=0)

    def _numbers(self, *lists) -> list[str]:
        return [self.constant(np.array(numbers, np.int64)) for numbers in lists]

    def _write(self, linear: _Linear) -> str:
        weight, bias = self.constant(linear.weight), self.constant(linear.bias)
        if linear.operator == "Gemm":
            return self.emit("Gemm", [linear.x, weight, bias])
        x = self.emit("Transpose", [linear.x], perm=(0, 3, 1, 2))
        y = self.emit("Conv", [x, weight, bias], **linear.attributes)
        return self.emit("Transpose", [y], perm=(0, 2, 3, 1))

    def _apply(self, equation, values: list[_Value]) -> list[_Value]:
        """The outputs of an equation."""
        primitive, parameters = equation.primitive.name, equation.params
        inner = parameters.get("jaxpr") or parameters.get("call_jaxpr")
        if platforms := parameters.get("branches_platforms"):
            # The same computation for each of them: the one for CPUs is the plain one.
            (of_cpu,) = (
                i for i, names in enumerate(platforms) if "cpu" in (names or ())
            )
            inner, primitive, values = parameters["branches"][of_cpu], "", values[1:]
        if inner is not None and primitive not in ("scan", "while", "cond"):
            for value in values:
                if value.linear is not None:
                    self.name(value)
            constants = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), constants, values)
        folded = _fold(equation, values)
        if folded is not None:
            return [_constant(array) for array in folded]
        if primitive == "unstack":  # from jax 0.11 on; slices before
            return self._unstack(equation, values[0])
        if primitive == "split":
            return self._split(equation, values[0])
        if len(equation.outvars) != 1:
            raise UserError(f"operation {primitive!r} cannot be written as ONNX")
        (out,) = (variable.aval for variable in equation.outvars)
        if primitive in _ALIASES:
            return values
        joined = _join(primitive, values)
        if joined is not None:
            return [_Value(out.shape, linear=joined)]
        if primitive in _ELEMENTWISE:
            shape = np.broadcast_shapes(*(_as_numbers(v.shape) for v in values))
            shape = tuple(
                out_size if size != 1 else 1
                for size, out_size in zip(shape, out.shape, strict=True)
            )
            name = self._elementwise(primitive, parameters, values)
            return [_Value(shape, name=name)]
        if primitive == "broadcast_in_dim":
            return [self._broadcast(parameters, values[0])]
        if primitive == "transpose":
            order = parameters["permutation"]
            name = self.emit("Transpose", [self.name(values[0])], perm=order)
            return [_Value([values[0].shape[axis] for axis in order], name=name)]
        if primitive == "dot_general":
            linear = self._as_linear(equation, values)
            if linear is not None:
                return [_Value(out.shape, linear=linear)]
        if primitive == "conv_general_dilated":
            return [_Value(out.shape, linear=self._convolution(equation, values))]
        if primitive == "gather":
            return [_Value(out.shape, name=self._gather(equation, values))]
        write = _WHOLE.get(primitive)
        if write is None:
            raise UserError(f"operation {primitive!r} cannot be written as ONNX")
        names = [
            self.whole(value, variable.aval)
            for value, variable in zip(values, equation.invars, strict=True)
        ]
        return [_Value(out.shape, name=write(self, equation, names))]

    def _elementwise(self, primitive, parameters, values) -> str:
        names = [self.name(value) for value in values]
        if primitive in _UNARY or primitive in _BINARY:
            return self.emit((_UNARY | _BINARY)[primitive], names)
        if primitive == "ne":
            return self.emit("Not", [self.emit("Equal", names)])
        if primitive == "rem":
            return self.emit("Mod", names, fmod=1)
        if primitive == "square":
            return self.emit("Mul", names * 2)
        if primitive == "rsqrt":
            return self.emit("Reciprocal", [self.emit("Sqrt", names)])
        if primitive == "log1p":
            one = self.constant(np.ones((), np.float32))
            return self.emit("Log", [self.emit("Add", [*names, one])])
        if primitive == "integer_pow":
            power = self.constant(np.array(parameters["y"], np.float32))
            return self.emit("Pow", [*names, power])
        if primitive == "convert_element_type":
            return self.emit("Cast", names, to=_onnx_type(parameters["new_dtype"]))
        which, no, yes = names  # select_n
        return self.emit("Where", [which, yes, no])

    def _broadcast(self, parameters, value) -> _Value:
        """Axes of 1 where there were none; the rest is left to the next operator."""
        shape = [1] * len(parameters["shape"])
        for axis, size in zip(
            parameters["broadcast_dimensions"], value.shape, strict=True
        ):
            shape[axis] = size
        if value.array is not None:
            return _constant(value.array.reshape(shape))
        return _Value(shape, name=self._reshape(self.name(value), shape))

    def _reshape(self, name, shape) -> str:
        # The one size that depends on the batch is what is left of the others.
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise UserError(f"the shape {tuple(shape)} cannot be written as ONNX")
        return self.emit("Reshape", [name, *self._numbers(sizes)])

    def _as_linear(self, equation, values) -> _Linear | None:
        """A product with a constant matrix over the last axis, if it is one."""
        x, weight = values
        (contracted, batched) = equation.params["dimension_numbers"]
        rank = len(equation.invars[0].aval.shape)
        last = ((rank - 1,), (0,))
        if weight.array is None or weight.array.ndim != 2 or batched != ((), ()):
            return None
        if contracted != last or rank not in (2, 4):
            return None
        name = self.whole(x, equation.invars[0].aval)
        bias = np.zeros(weight.array.shape[1], weight.array.dtype)
        if rank == 2:
            return _Linear("Gemm", name, weight.array, bias, {})
        kernel = weight.array.T[:, :, None, None]
        return _Linear("Conv", name, kernel, bias, {})

    def _convolution(self, equation, values) -> _Linear:
        parameters = equation.params
        numbers = parameters["dimension_numbers"]
        is_known = (
            values[1].array is not None
            and numbers.lhs_spec == (0, 3, 1, 2)
            and numbers.rhs_spec == (3, 2, 0, 1)
            and numbers.out_spec == (0, 3, 1, 2)
            and set(parameters["lhs_dilation"]) == {1}
            and parameters["batch_group_count"] == 1
        )
        if not is_known:
            raise UserError("a convolution of this kind cannot be written as ONNX")
        low, high = zip(*parameters["padding"], strict=True)
        weight = values[1].array.transpose(3, 2, 0, 1)
        return _Linear(
            "Conv",
            self.whole(values[0], equation.invars[0].aval),
            weight,
            np.zeros(len(weight), weight.dtype),
            {
                "strides": parameters["window_strides"],
                "pads": (*low, *high),
                "dilations": parameters["rhs_dilation"],
                "group": parameters["feature_group_count"],
            },
        )

    def _unstack(self, equation, value) -> list[_Value]:
        name, axis = self.whole(value, equation.invars[0].aval), equation.params["axis"]
        return [
            _Value(
                out.aval.shape,
                name=self.emit(
                    "Gather", [name, self.constant(np.array(index))], axis=axis
                ),
            )
            for index, out in enumerate(equation.outvars)
        ]

    def _split(self, equation, value) -> list[_Value]:
        name, axis = self.whole(value, equation.invars[0].aval), equation.params["axis"]
        ends = np.cumsum(equation.params["sizes"])
        return [
            _Value(
                out.aval.shape,
                name=self.emit(
                    "Slice", [name, *self._numbers([end - size], [end], [axis])]
                ),
            )
            for end, size, out in zip(
                ends, equation.params["sizes"], equation.outvars, strict=True
            )
        ]

    def _gather(self, equation, values) -> str:
        """What constants choose: a box, or rows of one axis or of axes side by side.

        Or single numbers, wherever computed indices say.
        """
        numbers = equation.params["dimension_numbers"]
        axes, indices = numbers.start_index_map, values[1].array
        shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        sizes = equation.params["slice_sizes"]
        rows = _grid(indices, len(axes))
        # Where the indices' own axes end up: in the place of those that they choose of.
        places = [axis for axis in range(len(out)) if axis not in numbers.offset_dims]
        is_box = indices is not None and indices.ndim == 1
        is_rows = (
            len(rows) == len(axes)
            and axes == tuple(range(axes[0], axes[0] + len(axes)))
            and numbers.collapsed_slice_dims == axes
            and places == list(range(axes[0], axes[0] + len(places)))
        )
        others = [axis for axis in range(len(shape)) if axis not in axes]
        batched = tuple(numbers.operand_batching_dims)
        is_points = (
            set(sizes) == {1}
            and batched in ((), (0,))
            and batched == tuple(numbers.start_indices_batching_dims)
            and axes == tuple(sorted(axes))
            and all(shape[axis] == 1 for axis in others if axis not in batched)
        )
        if is_points:
            name, at = (
                self.whole(value, variable.aval)
                for value, variable in zip(values, equation.invars, strict=True)
            )
            name = self._reshape(name, [shape[axis] for axis in (*batched, *axes)])
            at = self.emit("Cast", [at], to=_onnx_type(np.int64))
            name = self.emit("GatherND", [name, at], batch_dims=len(batched))
            return self._reshape(name, out)
        if (
            not (is_box or is_rows)
            or batched
            or any(sizes[axis] != shape[axis] for axis in others)
        ):
            raise UserError("a gather of this kind cannot be written as ONNX")
        name = self.whole(values[0], equation.invars[0].aval)
        if is_box:
            ends = [low + sizes[axis] for low, axis in zip(indices, axes, strict=True)]
            name = self.emit("Slice", [name, *self._numbers(indices, ends, axes)])
            return self._reshape(name, out) if numbers.collapsed_slice_dims else name
        for axis, chosen in zip(axes, rows, strict=True):
            name = self.emit("Gather", [name, self._numbers(chosen)[0]], axis=axis)
        return name


# Operators on whole tensors: (graph, equation, names) -> name.


def _write_reshape(graph, equation, names):
    return graph._reshape(names[0], equation.outvars[0].aval.shape)


def _write_concatenate(graph, equation, names):
    return graph.emit("Concat", names, axis=equation.params["dimension"])


def _write_stack(graph, equation, names):
    axis = equation.params["axis"]
    axes = graph._numbers([axis])
    parts = [graph.emit("Unsqueeze", [name, *axes]) for name in names]
    return graph.emit("Concat", parts, axis=axis)


def _write_slice(graph, equation, names):
    parameters, shape = equation.params, equation.invars[0].aval.shape
    strides = parameters["strides"] or (1,) * len(shape)
    cuts = [
        (axis, low, high, stride)
        for axis, (low, high, stride) in enumerate(
            zip(
                parameters["start_indices"],
                parameters["limit_indices"],
                strides,
                strict=True,
            )
        )
        if (low, high, stride) != (0, shape[axis], 1)
    ]
    if not cuts:
        return names[0]
    axes, lows, highs, steps = zip(*cuts, strict=True)
    return graph.emit("Slice", [*names, *graph._numbers(lows, highs, axes, steps)])


def _write_reduction(graph, equation, names):
    operator = _REDUCTIONS[equation.primitive.name]
    axes = equation.params["axes"]
    return graph.emit(f"Reduce{operator}", names, axes=axes, keepdims=0)


def _write_sum(graph, equation, names):
    axes = graph._numbers(equation.params["axes"])
    return graph.emit("ReduceSum", [*names, *axes], keepdims=0)


def _write_argmax(graph, equation, names):
    (axis,) = equation.params["axes"]
    found = graph.emit("ArgMax", names, axis=axis, keepdims=0)
    return graph.emit("Cast", [found], to=_onnx_type(equation.params["index_dtype"]))


def _write_cumsum(graph, equation, names):
    axis = graph.constant(np.array(equation.params["axis"]))
    reverse = int(equation.params["reverse"])
    return graph.emit("CumSum", [*names, axis], reverse=reverse)


def _write_pad(graph, equation, names):
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(low + high) < 0:
        raise UserError("a padding of this kind cannot be written as ONNX")
    return graph.emit("Pad", [names[0], *graph._numbers((*low, *high)), names[1]])


def _write_window(graph, equation, names):
    """A pool over the two middle axes."""
    parameters = equation.params
    window, strides = parameters["window_dimensions"], parameters["window_strides"]
    padding = parameters["padding"]
    is_known = (
        len(window) == 4
        and window[0] == window[3] == strides[0] == strides[3] == 1
        and padding[0] == padding[3] == (0, 0)
        and set(parameters["window_dilation"]) == {1}
        and set(parameters["base_dilation"]) == {1}
    )
    if not is_known:
        raise UserError("a pooling of this kind cannot be written as ONNX")
    low, high = zip(*padding[1:3], strict=True)
    attributes = {
        "kernel_shape": window[1:3],
        "strides": strides[1:3],
        "pads": (*low, *high),
    }
    operator = _WINDOWS[equation.primitive.name]
    is_sum = operator == "AveragePool"
    if is_sum:
        attributes["count_include_pad"] = 1
    x = graph.emit("Transpose", names, perm=(0, 3, 1, 2))
    y = graph.emit(operator, [x], **attributes)
    if is_sum:
        count = graph.constant(np.array(window[1] * window[2], np.float32))
        y = graph.emit("Mul", [y, count])
    return graph.emit("Transpose", [y], perm=(0, 2, 3, 1))


def _write_product(graph, equation, names):
    (left_sum, right_sum), (left_batch, right_batch) = equation.params[
        "dimension_numbers"
    ]
    letters = iter(string.ascii_lowercase)
    left, right = ([""] * len(variable.aval.shape) for variable in equation.invars)
    for of_left, of_right in ((left_batch, right_batch), (left_sum, right_sum)):
        for i, j in zip(of_left, of_right, strict=True):
            left[i] = right[j] = next(letters)
    out = [left[i] for i in left_batch]
    for axes in (left, right):
        for axis, letter in enumerate(axes):
            if not letter:
                axes[axis] = next(letters)
                out.append(axes[axis])
    terms = f"{''.join(left)},{''.join(right)}->{''.join(out)}"
    return graph.emit("Einsum", names, equation=terms)


def _grid(indices, count) -> list[np.ndarray]:
    """Indices along each axis, if `i[..., count]` are all of their combinations."""
    if indices is None or indices.shape[-1] != count:
        return []
    if count == 1:
        return [indices[..., 0]]
    if indices.ndim != count + 1:
        return []
    # Along an axis, at the first place of all others.
    rows = [
        np.moveaxis(indices[..., axis], axis, -1).reshape(-1, indices.shape[axis])[0]
        for axis in range(count)
    ]
    is_grid = np.array_equal(np.stack(np.meshgrid(*rows, indexing="ij"), -1), indices)
    return rows if is_grid else []


_WHOLE = {
    "argmax": _write_argmax,
    "concatenate": _write_concatenate,
    "cumsum": _write_cumsum,
    "dot_general": _write_product,
    "pad": _write_pad,
    "reduce_sum": _write_sum,
    "reshape": _write_reshape,
    "slice": _write_slice,
    "squeeze": _write_reshape,
    "stack": _write_stack,
    **dict.fromkeys(_REDUCTIONS, _write_reduction),
    **dict.fromkeys(_WINDOWS, _write_window),
}


def _constant(array) -> _Value:
    array = np.asarray(array)
    return _Value(array.shape, array=array)


def _as_numbers(shape) -> tuple[int, ...]:
    """A shape with 2 for the batch: only whether a size is 1 matters."""
    return tuple(size if isinstance(size, int) else 2 for size in shape)


def _fold(equation, values) -> list[np.ndarray] | None:
    """The outputs of an equation of constants; None where it is none."""
    if any(value.array is None for value in values):
        return None
    arrays = [value.array for value in values]
    if equation.primitive.name in _ELEMENTWISE:
        arrays = list(np.broadcast_arrays(*arrays))
    else:
        shapes = [variable.aval.shape for variable in equation.invars]
        sizes = [size for out in equation.outvars for size in out.aval.shape]
        for shape in shapes:
            sizes += shape
        if not all(isinstance(size, int) for size in sizes):
            return None
        arrays = [
            np.broadcast_to(array, shape)
            for array, shape in zip(arrays, shapes, strict=True)
        ]
    results = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
    if not equation.primitive.multiple_results:
        results = [results]
    return [np.asarray(result) for result in results]


def _join(primitive, values) -> _Linear | None:
    """A linear map followed by a constant factor or offset of each channel, as one."""
    if primitive not in ("add", "sub", "mul"):
        return None
    first, second = values
    if first.linear is None and primitive in ("add", "mul"):
        first, second = second, first
    if first.linear is None or second.array is None:
        return None
    channels = first.shape[-1]
    if second.array.size not in (1, channels):
        return None
    if second.array.size > 1 and second.shape[-1] != channels:
        return None
    numbers = np.broadcast_to(second.array.reshape(-1), (channels,))
    if primitive == "mul":
        return first.linear.affine(numbers, np.zeros_like(numbers))
    offset = numbers if primitive == "add" else -numbers
    return first.linear.affine(np.ones_like(numbers), offset)
