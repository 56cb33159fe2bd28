"""From a PyTorch module to its raw ONNX graph; the one file here that touches torch.

The module runs once, on stand-ins for tensors that have a shape and no memory, while every
function of torch that it calls is written down as an ONNX operator. What a VanillaNet calls is
a short closed table, kept here; any other function is an error that names it. PyTorch's own
exporter takes every module and half as long as all the rest of an export.
"""

from __future__ import annotations

__all__ = ["DEFAULT_OPSET", "MAX_IR_VERSION", "OPSETS", "trace"]

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from vntools.base.errors import DataFault, InternalFault, UsageFault
from vntools.base.provenance import version_of

DEFAULT_OPSET = 20
"""The newest opset that every TensorRT 10.x and 11.x parses: 10.0 stops at 20, 10.15 at 24.

Source: docs/operators.md of onnx-tensorrt, at the release in question.
"""

OPSETS = range(15, 27)
"""From BatchNormalization-15 on no operator of ours has changed but in the types it takes."""

MAX_IR_VERSION = 10
"""The newest IR version that we write; 11 came with ONNX 1.18, after TensorRT 10.0."""

_Sizes = int | Sequence[int]


def trace(
    module: nn.Module, image_size: int, *, batch: int | None = None, opset: int = DEFAULT_OPSET
) -> ir.Model:
    """The graph of ``module``, BatchNormalization kept, its weights shared with the module.

    Args:
        module: (n, 3, image_size, image_size) to (n, classes), float32, in eval mode.
        image_size: height and width, pixels.
        batch: a fixed batch; None leaves it dynamic, under the name ``batch``.
        opset: of the ONNX domain.

    Returns:
        A model with the input ``input`` and the output ``logits``. A convolution's or
        BatchNormalization's node is named as its weight is.

    Raises:
        DataFault: ``export.training_mode``, where a part of the module is in training mode.
        UsageFault: ``export.opset``: not one of ``OPSETS``.
        InternalFault: ``export.failed``: the module calls what has no place in the table, or
            reads a tensor that is neither its own nor computed from its input.
    """
    for name, part in module.named_modules():
        if part.training:
            raise DataFault(
                "export.training_mode",
                f"{name or 'the module'} is in training mode",
                hint="eval()",
            )
    if opset not in OPSETS:
        raise UsageFault(
            "export.opset", f"opset {opset} is not one of {OPSETS[0]} to {OPSETS[-1]}"
        )
    network = _Network(module, batch)
    x = network.input((3, image_size, image_size))
    with torch.no_grad(), network:
        y = module(x)
    return network.model(x, y, opset)


class _Network(TorchFunctionMode):
    """Writes down what a module computes; no function of torch is run.

    Args:
        module: whose parameters and buffers become initializers where they are read.
        batch: the first dimension of every value; None is dynamic.
    """

    def __init__(self, module: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.batch = batch
        self._own = {
            id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())
        }
        self._values: dict[int, ir.Value] = {}
        self._tensors: list[Tensor] = []  # kept, so that no other tensor takes over an id
        self._initializers: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._numbers: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Write ``func`` down, and return a stand-in for its result."""
        if func in _SHAPES_READ:
            return func(*args, **(kwargs or {}))
        if func not in _WRITERS:
            raise _failed(f"{resolve_name(func) or func} has no ONNX operator here")
        try:
            return _WRITERS[func](self, *args, **(kwargs or {}))
        except (TypeError, ValueError) as e:
            raise _failed(f"{resolve_name(func) or func}: {e}") from e

    def input(self, shape: tuple[int, ...]) -> Tensor:
        """A stand-in for the network's input; ``shape`` is that of one sample."""
        return self._stand_in("input", shape)

    def node(
        self,
        op_type: str,
        inputs: Sequence[Tensor | None],
        shape: tuple[int, ...],
        attributes: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """A node with one output, and a stand-in for it; ``shape`` is that of one sample."""
        values = [None if t is None else self._value(t) for t in inputs]
        weight = values[1] if op_type in ("Conv", "BatchNormalization") else None
        if weight is not None and weight.name:
            name = weight.name.removesuffix(".weight")
        else:
            name = f"{op_type.lower()}_{self._numbers[op_type]}"
            self._numbers[op_type] += 1
        result = self._stand_in(f"{name}.out", shape)
        given = ir.convenience.convert_attributes(attributes or {})
        out = self._values[id(result)]
        self._nodes.append(ir.Node("", op_type, values, given, outputs=[out], name=name))
        return result

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> Tensor:
        """A stand-in for an initializer that the module does not have."""
        tensor = torch.from_numpy(array)
        self._own[id(tensor)] = name
        self._tensors.append(tensor)
        return tensor

    def model(self, x: Tensor, y: Tensor, opset: int) -> ir.Model:
        """What was written down, from ``x`` to ``y``."""
        logits = self._value(y)
        logits.name = "logits"
        graph = ir.Graph(
            [self._value(x)],
            [logits],
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports={"": opset},
            name="vanillanet",
        )
        return ir.Model(
            graph,
            ir_version=MAX_IR_VERSION,
            producer_name="vntools",
            producer_version=version_of("vntools"),
        )

    def _stand_in(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of that shape over a single element, for a value of that name."""
        tensor = torch.zeros(()).expand(self.batch or 2, *shape)
        self._tensors.append(tensor)
        self._values[id(tensor)] = ir.Value(
            name=name,
            shape=ir.Shape((self.batch or "batch", *shape)),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        return tensor

    def _value(self, tensor: Tensor) -> ir.Value:
        found = self._values.get(id(tensor))
        if found is not None:
            return found
        name = self._own.get(id(tensor))
        if name is None:
            raise _failed("the module reads a tensor that is neither its own nor an input")
        constant = ir.Tensor(tensor.detach().numpy(), name=name)
        value = ir.Value(
            name=name,
            shape=constant.shape,
            type=ir.TensorType(constant.dtype),
            const_value=constant,
        )
        self._values[id(tensor)] = value
        self._initializers.append(value)
        return value


def _failed(why: str) -> InternalFault:
    return InternalFault(
        "export.failed", f"the network cannot be traced: {why}", hint="--debug shows where"
    )


def _conv2d(  # noqa: PLR0917 - torch's own signature; a call may give it all by place
    network: _Network,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """aten::conv2d as Conv-11."""
    window = _window(tuple(weight.shape[2:]), stride, padding, dilation)
    shape = (weight.shape[0], *_slid(x, window))
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return network.node("Conv", inputs, shape, {**window, "group": groups})


def _batch_norm(
    network: _Network,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    **_momentum: float,
) -> Tensor:
    """aten::batch_norm by its running statistics as BatchNormalization-15."""
    _require(not training, "batch_norm by the statistics of the batch")
    inputs = (x, weight, bias, running_mean, running_var)
    return network.node("BatchNormalization", inputs, _one(x), {"epsilon": eps})


def _leaky_relu(
    network: _Network, x: Tensor, *, negative_slope: float, inplace: bool
) -> Tensor:
    """aten::leaky_relu as LeakyRelu-6."""
    _require(not inplace, "leaky_relu in place")
    return network.node("LeakyRelu", (x,), _one(x), {"alpha": float(negative_slope)})


def _relu(network: _Network, x: Tensor, *, inplace: bool) -> Tensor:
    """aten::relu as Relu-14."""
    _require(not inplace, "relu in place")
    return network.node("Relu", (x,), _one(x))


def _max_pool2d(
    network: _Network,
    x: Tensor,
    kernel_size: _Sizes,
    *,
    stride: _Sizes | None = None,
    padding: _Sizes = 0,
    dilation: _Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """aten::max_pool2d as MaxPool-12."""
    _require(not (ceil_mode or return_indices), "max_pool2d with ceil_mode or indices")
    window = _window(_pair(kernel_size), stride or kernel_size, padding, dilation)
    return network.node("MaxPool", (x,), (x.shape[1], *_slid(x, window)), window)


def _adaptive_max_pool2d(
    network: _Network, x: Tensor, output_size: _Sizes, *, return_indices: bool
) -> Tensor:
    """aten::adaptive_max_pool2d as MaxPool-12, or exactly as Gather-13 and Max-13.

    Max pooling is separable. Along an axis of n places, output i of m is the maximum over
    places floor(i n / m) to ceil((i + 1) n / m) - 1: one Gather for each place of the widest
    window (a narrower window names its last place again), and a Max over them. Where m divides
    n it is a plain MaxPool.
    """
    _require(not return_indices, "adaptive_max_pool2d with indices")
    size, sides = _pair(output_size), tuple(x.shape[2:])
    if all(n % m == 0 for n, m in zip(sides, size, strict=True)):
        return _max_pool2d(network, x, [n // m for n, m in zip(sides, size, strict=True)])
    for axis, (n, m) in enumerate(zip(sides, size, strict=True), start=2):
        windows = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        widest = max(end - begin for begin, end in windows)
        shape = tuple(m if a == axis else d for a, d in enumerate(x.shape) if a)
        places: list[Tensor] = []
        for j in range(widest):
            indices = np.array([min(begin + j, end - 1) for begin, end in windows])
            named = network.constant(f"places_{n}_{m}_{j}_of_axis_{axis}", indices)
            places.append(network.node("Gather", (x, named), shape, {"axis": axis}))
        x = reduce(lambda a, b, s=shape: network.node("Max", (a, b), s), places)
    return x


def _adaptive_avg_pool2d(network: _Network, x: Tensor, output_size: _Sizes) -> Tensor:
    """aten::adaptive_avg_pool2d to one place as GlobalAveragePool-1."""
    _require(_pair(output_size) == (1, 1), "adaptive_avg_pool2d to more than one place")
    return network.node("GlobalAveragePool", (x,), (x.shape[1], 1, 1))


def _dropout(_network: _Network, x: Tensor, *, training: bool, **_rest: object) -> Tensor:
    """aten::dropout in inference is nothing."""
    _require(not training, "dropout in training")
    return x


def _flatten(network: _Network, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """aten::flatten of all but the batch as Flatten-13."""
    _require((start_dim, end_dim) == (1, -1), "flatten other than of all but the batch")
    return network.node("Flatten", (x,), (x[0].numel(),), {"axis": 1})


_WRITERS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    functional.batch_norm: _batch_norm,
    functional.leaky_relu: _leaky_relu,
    functional.relu: _relu,
    functional.max_pool2d: _max_pool2d,
    functional.adaptive_max_pool2d: _adaptive_max_pool2d,
    functional.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    functional.dropout: _dropout,
    Tensor.flatten: _flatten,
}
_SHAPES_READ: tuple[Callable[..., Any], ...] = (
    Tensor.dim,
    Tensor.size,
    Tensor.shape.__get__,  # pyright: ignore[reportAttributeAccessIssue] - a C property
)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _failed(f"{what} has no ONNX operator here")


def _one(x: Tensor) -> tuple[int, ...]:
    """The shape of one sample of a batch."""
    return tuple(x.shape[1:])


def _pair(size: _Sizes) -> tuple[int, int]:
    """A size for both axes, or one each."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _window(
    kernel: tuple[int, ...], stride: _Sizes, padding: _Sizes, dilation: _Sizes
) -> dict[str, tuple[int, ...]]:
    """The attributes of a sliding window."""
    return {
        "kernel_shape": kernel,
        "strides": _pair(stride),
        "pads": _pair(padding) * 2,
        "dilations": _pair(dilation),
    }


def _slid(x: Tensor, window: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Height and width behind a sliding window: floor((n + 2 p - d (k - 1) - 1) / s) + 1."""
    names = ("kernel_shape", "strides", "pads", "dilations")
    settings = zip(*(window[name][:2] for name in names), strict=True)
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, (k, s, p, d) in zip(x.shape[2:], settings, strict=True)
    )
