"""From a PyTorch module to its raw ONNX graph; the one file here that touches torch."""

from __future__ import annotations

__all__ = ["DEFAULT_OPSET", "MAX_IR_VERSION", "trace"]

import contextlib
import logging
import warnings
from collections.abc import Generator
from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from vntools.base.errors import DataFault, InternalFault, UsageFault
from vntools.base.provenance import version_of

DEFAULT_OPSET = 20
"""The newest opset that every TensorRT 10.x and 11.x parses: 10.0 stops at 20, 10.15 at 24.

Source: docs/operators.md of onnx-tensorrt, at the release in question.
"""

MAX_IR_VERSION = 10
"""The newest IR version that we write; 11 came with ONNX 1.18, after TensorRT 10.0."""


class _ExactAdaptiveMaxPool2d(nn.Module):
    """nn.AdaptiveMaxPool2d in operators that ONNX has, for a fixed height and width.

    Max pooling is separable. Along an axis of n places, output i of m is the maximum over
    places floor(i n / m) to ceil((i + 1) n / m) - 1: one Gather for each place of the widest
    window (a narrower window names its last place again), and a Max over them. Where m divides
    n it is a plain MaxPool.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c, *size)."""
        sides = [int(n) for n in x.shape[2:]]
        if all(n % m == 0 for n, m in zip(sides, self.size, strict=True)):
            kernel = [n // m for n, m in zip(sides, self.size, strict=True)]
            return functional.max_pool2d(x, kernel)
        for axis, (n, m) in enumerate(zip(sides, self.size, strict=True), start=2):
            windows = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            widest = max(end - begin for begin, end in windows)
            places = [
                torch.tensor([min(begin + j, end - 1) for begin, end in windows])
                for j in range(widest)
            ]
            x = reduce(torch.maximum, [x.index_select(axis, p) for p in places])
        return x


def trace(
    module: nn.Module, image_size: int, *, batch: int | None = None, opset: int = DEFAULT_OPSET
) -> ir.Model:
    """The graph of ``module``, BatchNormalization kept, its weights shared with the module.

    Args:
        module: (n, 3, image_size, image_size) to (n, classes), in eval mode.
        image_size: height and width, pixels.
        batch: a fixed batch; None leaves it dynamic, under the name ``batch``.
        opset: of the ONNX domain.

    Returns:
        A model with the input ``input`` and the output ``logits``, without any trace of the
        machine that made it. A convolution's or BatchNormalization's node is named as its
        weight is.

    Raises:
        DataFault: ``export.training_mode``, where a part of the module is in training mode:
            the exporter would not show it.
        UsageFault: ``export.opset``: the exporter does not write that opset.
        InternalFault: ``export.failed``.
    """
    for name, part in module.named_modules():
        if part.training:
            raise DataFault(
                "export.training_mode",
                f"{name or 'the module'} is in training mode",
                hint="eval()",
            )
    # The exporter takes a batch of 1 as fixed.
    example = torch.zeros(batch or 2, 3, image_size, image_size)
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    with _exact_pooling(module), _silence(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                optimize=False,
                dynamic_shapes=dynamic,
                input_names=["input"],
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
        except Exception as e:
            raise InternalFault(
                "export.failed",
                f"torch.onnx.export: {type(e).__name__}: {str(e).splitlines()[0][:150]}",
                hint="--opset with another number may help; --debug shows more",
            ) from e
    assert program is not None  # a file name would have made it None
    model: ir.Model = program.model
    if model.opset_imports.get("") != opset:  # the exporter goes back to its own default
        raise UsageFault("export.opset", f"PyTorch's exporter cannot write opset {opset}")
    _anonymize(model)
    return model


@contextlib.contextmanager
def _exact_pooling(module: nn.Module) -> Generator[None, None, None]:
    """Adaptive max pooling, which the exporter does not know, in a form that it does."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveMaxPool2d):
                size = child.output_size
                pair = size if isinstance(size, tuple) else (size, size)
                exact = _ExactAdaptiveMaxPool2d((int(pair[0] or 0), int(pair[1] or 0)))
                swapped.append((parent, name, child))
                setattr(parent, name, exact.eval())
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


@contextlib.contextmanager
def _silence() -> Generator[None, None, None]:
    """Keep the exporter's talk of deprecations and of torchvision off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _anonymize(model: ir.Model) -> None:
    """Drop stack traces, paths and the exporter's notes; say who produced the model."""
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    model.producer_name, model.producer_version = "vntools", version_of("vntools")
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.name, graph.doc_string = "vanillanet", None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
        weight = node.inputs[1] if node.op_type in ("Conv", "BatchNormalization") else None
        if weight is not None and weight.name:
            node.name = weight.name.removesuffix(".weight")
        padding = node.attributes.get("auto_pad")
        if padding is not None and padding.as_string() == "NOTSET":
            del node.attributes["auto_pad"]  # the default, which the passes do not write
