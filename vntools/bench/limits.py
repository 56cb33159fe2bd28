"""How fast a graph can be at all on a device: the roofline of Williams et al. 2009.

Two bounds. That of the network: weights, inputs and outputs moved once at the device's full
bandwidth, or all multiplications at its peak, whichever takes longer; only weights that stay
in a cache from query to query make anything faster. And layer by layer: each layer reads and
writes its activations too and is bound by its own longer term, one layer after the other; to
be faster is to fuse more than :mod:`vntools.bench.work` does, or to hand on activations in a
cache.

Source: Williams, Waterman, Patterson 2009, Roofline: An Insightful Visual Performance Model.
"""

from __future__ import annotations

__all__ = ["Floor", "LayerFloor", "floor_of", "floor_of_work", "layer_record", "work_record"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vntools.bench.devices import Device

if TYPE_CHECKING:
    import onnx_ir as ir

    from vntools.bench.work import Layer, Work

MEMORY, COMPUTE = "memory", "compute"


class _Bounds:
    """Two least times of one thing, of which the longer binds."""

    memory_ms: float
    compute_ms: float

    @property
    def ms(self) -> float:
        """The longer of the two."""
        return max(self.memory_ms, self.compute_ms)

    @property
    def binds(self) -> str:
        """``memory`` or ``compute``, whichever takes longer."""
        return MEMORY if self.memory_ms >= self.compute_ms else COMPUTE


@dataclass(frozen=True)
class LayerFloor(_Bounds):
    """The least time of a layer.

    Attributes:
        layer: what it does.
        memory_ms: its bytes over the bandwidth.
        compute_ms: its operations over the peak of its precision.
    """

    layer: Layer
    memory_ms: float
    compute_ms: float

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **layer_record(self.layer),
            "memory_ms": self.memory_ms,
            "compute_ms": self.compute_ms,
            "floor_ms": self.ms,
            "binds": self.binds,
        }


@dataclass(frozen=True)
class Floor(_Bounds):
    """The least time of a graph at a batch on a device.

    Attributes:
        device: whose limits these are.
        work: what there is to do.
        memory_ms: the network's weights, inputs and outputs over the bandwidth.
        compute_ms: its operations, each over the peak of its precision.
        per_layer: in the order of execution.
    """

    device: Device
    work: Work
    memory_ms: float
    compute_ms: float
    per_layer: tuple[LayerFloor, ...]

    @property
    def bytes(self) -> int:
        """Of weights, inputs and outputs."""
        return self.work.moved_bytes

    @property
    def operations(self) -> int:
        """Two for each multiply-add."""
        return sum(self.work.operations.values())

    @property
    def layered_ms(self) -> float:
        """The bound layer by layer."""
        return sum(f.ms for f in self.per_layer)

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "device": self.device.to_record(),
            "floor_ms": self.ms,
            "binds": self.binds,
            "memory_ms": self.memory_ms,
            "compute_ms": self.compute_ms,
            "layered_ms": self.layered_ms,
            **work_record(self.work),
            "layers": [f.to_record() for f in self.per_layer],
        }


def layer_record(layer: Layer) -> dict[str, Any]:
    """A layer as JSON."""
    return {
        "name": layer.name,
        "ops": list(layer.ops),
        "precision": layer.precision,
        "weight_bytes": layer.weight_bytes,
        "read_bytes": layer.read_bytes,
        "written_bytes": layer.written_bytes,
        "operations": layer.operations,
    }


def work_record(work: Work) -> dict[str, Any]:
    """What a graph has to do as JSON, without its layers."""
    return {
        "batch": work.batch,
        "moved_bytes": work.moved_bytes,
        "weight_bytes": work.weight_bytes,
        "input_bytes": work.input_bytes,
        "output_bytes": work.output_bytes,
        "layered_bytes": sum(layer.moved_bytes for layer in work.layers),
        "operations": work.operations,
    }


def floor_of(model: ir.Model, batch: int | None, device: Device) -> Floor:
    """The least time of a graph at a batch on a device.

    Args:
        model: in the types that it is to run in.
        batch: None is the graph's own, or 1.
        device: see :mod:`vntools.bench.devices`.

    Raises:
        VntoolsError: as :func:`vntools.bench.work.work_of` and :meth:`Device.peak_of`.
    """
    from vntools.bench.work import work_of

    return floor_of_work(work_of(model, batch), device)


def floor_of_work(work: Work, device: Device) -> Floor:
    """The least time of what there is to do.

    Raises:
        UsageFault: ``limit.precision``.
    """
    per_byte_ms = 1e3 / (device.bandwidth_gb_s * 1e9)  # s -> ms

    def compute_ms(precision: str, operations: int) -> float:
        return operations and operations / (device.peak_of(precision) * 1e9)  # s -> ms

    per_layer = tuple(
        LayerFloor(
            layer,
            layer.moved_bytes * per_byte_ms,
            compute_ms(layer.precision, layer.operations),
        )
        for layer in work.layers
    )
    return Floor(
        device,
        work,
        work.moved_bytes * per_byte_ms,
        sum(compute_ms(p, n) for p, n in work.operations.items()),
        per_layer,
    )
