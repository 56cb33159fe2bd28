"""OpenVINO on the CPU, in the types of the graph."""

from __future__ import annotations

__all__ = ["OpenvinoRunner"]

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import DataFault, InternalFault, Unavailable
from vntools.base.optional import require
from vntools.base.provenance import host
from vntools.runtime.base import HostClock, Runner, TensorSpec, check_feeds
from vntools.runtime.onnx_weights import weight_bytes

_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_WHOLE = {"i8", "u8"}
_ARITHMETIC = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}  # types of layers


class OpenvinoRunner(Runner):
    """An ONNX model in OpenVINO's CPU plugin, compiled for each shape in ``prepare``.

    Left alone, the plugin computes a float32 graph in bfloat16 where the processor can: so the
    precision is asked for, and read back from the layers of the compiled model.

    Args:
        model: a self-contained ONNX model.
        threads: by default one for each core that this process may use.

    Raises:
        DataFault: on opening: ``onnx.invalid``, ``onnx.external``.
        Unavailable: ``dependency.missing``; in :meth:`prepare`, ``runner.precision`` or
            ``runner.threads``: the plugin does not do what was asked.

    Source: OpenVINO, "CPU Device", inference precision, and "Performance Hints and Thread
    Scheduling".
    """

    def __init__(self, model: bytes, *, threads: int | None = None) -> None:
        self.backend = "openvino-cpu"
        self.clock = HostClock()
        self.details = {}
        self.inputs = self.outputs = ()
        self._bytes = model
        self._threads = threads

    def __enter__(self) -> Self:
        types = tuple(weight_bytes(self._bytes)) or ("float32",)
        self._openvino = require("openvino", extra="openvino")
        self._core = self._openvino.Core()
        try:
            self._model = self._core.read_model(self._bytes)
        except RuntimeError as e:
            raise DataFault("onnx.invalid", f"OpenVINO cannot load it: {_reason(e)}") from e
        self._threads = self._threads or int(host()["cores"])
        self._hint = next((_HINTS[t] for t in types if t in _HINTS), "f32")
        self._whole = types[0] == "int8"
        self._shape: dict[str, tuple[int, ...]] = {}
        axes = _axes(self._bytes)
        self.inputs = tuple(_spec(port, axes) for port in self._model.inputs)
        self.outputs = tuple(_spec(port, axes) for port in self._model.outputs)
        self.details = {
            "version": str(self._openvino.__version__).partition("-")[0],
            "precision": types[0],
            "threads": self._threads,
            "sha256": sha256_bytes(self._bytes),
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in ("_request", "_model", "_core"):
            self.__dict__.pop(name, None)

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """See :meth:`Runner.prepare`."""
        arrays = check_feeds(self.inputs, feeds)
        shape = {name: array.shape for name, array in arrays.items()}
        if shape != self._shape:
            self._request = self._compile(shape)
            self._shape = shape
        for name, array in arrays.items():
            np.copyto(self._request.get_tensor(name).data, array)

    def _compile(self, shape: dict[str, tuple[int, ...]]) -> Any:
        """An inference request for inputs of these shapes."""
        model = self._model.clone()
        wanted = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model.reshape({name: list(extents) for name, extents in shape.items()})
            compiled = self._core.compile_model(model, "CPU", wanted)
            self._check(compiled)
            return compiled.create_infer_request()
        except RuntimeError as e:
            raise InternalFault("runner.failed", f"OpenVINO failed: {_reason(e)}") from e

    def _check(self, compiled: Any) -> None:
        """Hold the compiled model against what was asked for, and note what its layers do."""
        threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if threads != self._threads:
            raise Unavailable(
                "runner.threads",
                f"{self._threads} threads were asked for, and OpenVINO uses {threads}",
                hint=f"measure with --threads {threads}",
            )
        found: dict[str, int] = {}
        for layer in compiled.get_runtime_model().get_ordered_ops():
            said = layer.get_rt_info()
            if str(said["layerType"].value) in _ARITHMETIC:
                precision = str(said["runtimePrecision"].value)
                found[precision] = found.get(precision, 0) + 1
        if set(found) - {self._hint, *_WHOLE} or (self._whole and not _WHOLE & set(found)):
            asked = f"{'i8 and ' if self._whole else ''}{self._hint}"
            raise Unavailable(
                "runner.precision",
                f"{asked} was asked for, and OpenVINO computes in "
                + ", ".join(f"{p} in {n} layers" for p, n in sorted(found.items())),
                hint="measure a graph in a type that this processor has",
            )
        self.details["layers"] = found

    def upload(self) -> None:
        """See :meth:`Runner.upload`."""

    def enqueue(self) -> None:
        """See :meth:`Runner.enqueue`."""
        try:
            self._request.infer(share_outputs=True)  # no copies of the outputs
        except RuntimeError as e:
            raise InternalFault("runner.failed", f"OpenVINO failed: {_reason(e)}") from e

    def download(self) -> None:
        """See :meth:`Runner.download`."""

    def synchronize(self) -> None:
        """See :meth:`Runner.synchronize`."""

    def results(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Runner.results`."""
        return {s.name: self._request.get_tensor(s.name).data.copy() for s in self.outputs}


def _reason(error: Exception) -> str:
    """The last line of a message that begins with places in OpenVINO's source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _axes(model: bytes) -> dict[str, list[str]]:
    """Names of the dynamic axes of inputs and outputs, which OpenVINO does not keep."""
    import onnx

    graph = onnx.ModelProto.FromString(model).graph
    return {
        value.name: [axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def _spec(port: Any, axes: Mapping[str, list[str]]) -> TensorSpec:
    """An input or output as a specification; an axis without a name gets one of its own.

    Raises:
        DataFault: ``onnx.io``: of a number of axes that is not known.
    """
    name, shape = str(port.any_name), port.partial_shape
    if shape.rank.is_dynamic:
        raise DataFault("onnx.io", f"{name!r} has an unknown number of axes")
    names = axes.get(name) or [""] * len(shape)
    extents = (
        (names[i] or f"{name}.{i}") if extent.is_dynamic else int(extent.get_length())
        for i, extent in enumerate(shape)
    )
    return TensorSpec(name, tuple(extents), str(np.dtype(port.element_type.to_dtype())))
