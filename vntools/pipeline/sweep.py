"""One artifact measured at one batch after another, with its floors and trtexec's files."""

from __future__ import annotations

__all__ = ["Files", "Floors", "Measured", "SweepOptions", "sweep"]

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import check_output, published
from vntools.base.errors import UsageFault, VntoolsError, about
from vntools.pipeline.bench import Artifact, open_artifact
from vntools.pipeline.listener import Listener, percent
from vntools.pipeline.peak import LimitOptions, limit_of

if TYPE_CHECKING:
    from vntools.bench.devices import Device
    from vntools.bench.limits import Floor
    from vntools.bench.measurement import BenchOptions, Measurement
    from vntools.runtime.base import Runner

_BLOCKED, _WIDENED = "_nchwc", "InsertedPrecisionFreeCast_"
_PROFILED = 20  # queries; a layer's median then rests on as many


@dataclass(frozen=True)
class Files:
    """What trtexec writes too; of one batch.

    Attributes:
        times: ``--exportTimes``, every query.
        profile: ``--exportProfile``, time by layer.
        layer_info: ``--exportLayerInfo``, the engine inspector's JSON.
        force: overwrite what vntools did not write.
    """

    times: Path | None = None
    profile: Path | None = None
    layer_info: Path | None = None
    force: bool = False

    def check(self) -> None:
        """Hold the names against the disk.

        Raises:
            VntoolsError: as :func:`vntools.base.artifacts.check_output`.
        """
        for path in (self.times, self.profile, self.layer_info):
            if path is not None:
                check_output(path, force=self.force)

    def write(self, path: Path, text: str) -> None:
        """Publish one of them."""
        with published(path, force=self.force) as file:
            file.write(text.encode())


@dataclass(frozen=True)
class SweepOptions:
    """What to measure beside latency and throughput.

    Attributes:
        bench: how to measure; its batch is replaced.
        batches: one measurement each.
        layers: time the layers too.
        limit: whose limits to hold the medians against; by default those of the GPU that is
            measured on, where its data sheet is held.
        files: to write.
    """

    bench: BenchOptions
    batches: tuple[int, ...] = (1,)
    layers: bool = False
    limit: LimitOptions = field(default_factory=LimitOptions)
    files: Files = field(default_factory=Files)


@dataclass(frozen=True)
class Measured:
    """A measurement and what the hardware could do.

    Attributes:
        measurement: of one batch.
        floor: of the same graph at that batch; None where it is not known.
        layers_ms: time of each layer in each profiled query; empty where not asked for.
    """

    measurement: Measurement
    floor: Floor | None
    layers_ms: dict[str, list[float]]

    @property
    def over_floor(self) -> float | None:
        """Median compute time over the floor, of which copies to the GPU are no part."""
        if self.floor is None:
            return None
        compute = self.measurement.summary(self.measurement.counted.compute)
        return compute.median_ms / self.floor.ms

    def layers(self) -> list[dict[str, Any]]:
        """Each layer with its median and, where it is known what it does, its floor.

        TensorRT joins the names of the nodes that it fuses by " + ". ONNX Runtime calls a node
        in its blocked layout after the value that the node makes, with a prefix where it
        computes float16 in float32.

        Source: ONNX Runtime, onnxruntime/core/optimizer/nchwc_transformer.cc.
        """
        per_layer = self.floor.per_layer if self.floor else ()
        floors = {made + _BLOCKED: f.ms for f in per_layer for made in f.layer.makes}
        floors |= {f.layer.name: f.ms for f in per_layer}

        def floor_ms(name: str) -> float | None:
            parts = name.removeprefix(_WIDENED).split(" + ")
            return sum(floors.get(part, 0.0) for part in parts) or None

        return [
            {
                "name": name,
                "ms": statistics.median(ms),
                "floor_ms": floor_ms(name),
            }
            for name, ms in self.layers_ms.items()
        ]

    def to_record(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-ready; see :meth:`vntools.bench.measurement.Measurement.to_record`."""
        record = self.measurement.to_record(samples=samples)
        if self.layers_ms:
            record["layers"] = self.layers()
        if self.floor is not None:
            record["floor"] = {
                **self.floor.to_record(),
                "median_over_floor": self.over_floor,
            }
        return record


def sweep(artifact: Artifact, options: SweepOptions, listener: Listener) -> list[Measured]:
    """Open an artifact once and measure it at every batch.

    What the backend cannot give is refused before anything is measured.

    Raises:
        UsageFault: ``bench.files``: trtexec's files of several batches; ``bench.profile``,
            ``bench.layer_info``; as :func:`vntools.bench.measure.measure`.
        VntoolsError: as :func:`vntools.pipeline.bench.open_artifact`.
    """
    from vntools.bench.export import profile_record, times_record
    from vntools.bench.measure import measure, random_feeds

    files = options.files
    if len(options.batches) > 1 and (files.times or files.profile or files.layer_info):
        raise UsageFault(
            "bench.files", "trtexec's files are of one batch", hint="give one --batch"
        )
    files.check()
    found: list[Measured] = []
    with about(artifact.path), open_artifact(artifact, listener) as runner:
        for batch in options.batches:
            random_feeds(runner.inputs, batch, seed=0)  # refuse what cannot be fed first
        floors = Floors(artifact, options.limit, runner, listener)
        for batch in options.batches:
            bench = replace(options.bench, batch=batch)
            floor = floors.of(batch)
            layers_ms: dict[str, list[float]] = {}
            if options.layers or files.profile or files.layer_info:
                runner.run(random_feeds(runner.inputs, batch, seed=bench.seed))
            if files.layer_info:
                files.write(files.layer_info, runner.layer_info())
            if options.layers or files.profile:
                with listener.progress("time the layers"):
                    layers_ms = runner.profile(_PROFILED)
            if files.profile:
                files.write(files.profile, _lines(profile_record(layers_ms)))
            with percent(listener, f"measure batch {batch}") as tick:
                measured = measure(runner, bench, tick=tick)
            if files.times:
                files.write(files.times, _lines(times_record(measured.samples)))
            found.append(Measured(measured, floor, layers_ms))
    return found


class Floors:
    """The floors of an artifact's graph, batch by batch; its limits are found once.

    Args:
        artifact: a plan with its graph beside it, or an ONNX file.
        limit: where limits are from, ``auto`` being where the runner is; on a known GPU its
            own are taken if nothing is asked for.
        runner: the artifact, open.
        listener: hears why there is no floor.
        device: the limits, where they were found before.

    Attributes:
        device: the limits, once they are known.
    """

    def __init__(
        self,
        artifact: Artifact,
        limit: LimitOptions,
        runner: Runner,
        listener: Listener,
        *,
        device: Device | None = None,
    ) -> None:
        self._artifact, self._listener = artifact, listener
        self._limit, self._asked = limit, limit != LimitOptions()
        self.device = device
        if limit.measure == "auto":
            measure = "cuda" if runner.clock.on_gpu else "cpu"
            self._limit = replace(limit, measure=measure)
        if not self._asked:
            from vntools.bench.devices import device_of_gpu

            self.device = device_of_gpu(str(runner.details.get("gpu", {}).get("name")))

    def of(self, batch: int) -> Floor | None:
        """The floor at a batch, or None.

        Raises:
            VntoolsError: limits were asked for, and there is no graph to hold against them.
        """
        if not self._asked and self.device is None:
            return None
        try:
            return self._of(batch)
        except VntoolsError as e:
            if self._asked:
                raise
            self._listener.note(f"no floor: {e.line()}")
            return None

    def _of(self, batch: int) -> Floor | None:
        from vntools.bench.limits import floor_of_work
        from vntools.pipeline.inspect import InspectOptions, inspect

        found = inspect(InspectOptions(self._artifact.path, batch=batch), self._listener)
        if found.work is None:
            raise UsageFault(
                "bench.limit",
                "the floor follows from the graph that the plan was built from",
                hint="keep the ONNX file beside the plan",
            )
        self.device = self.device or limit_of(self._limit, found.work.operations)
        return None if self.device is None else floor_of_work(found.work, self.device)


def _lines(records: Sequence[dict[str, Any]]) -> str:
    """A JSON list with a line for each entry, as trtexec writes it."""
    return "[\n  " + "\n, ".join(map(json.dumps, records)) + "\n]\n"
