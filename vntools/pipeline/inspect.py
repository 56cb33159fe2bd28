"""What a plan or an ONNX file is, and how fast it can be at all; nothing is executed."""

from __future__ import annotations

__all__ = ["InspectOptions", "Inspected", "inspect", "onnx_floor"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import read_sidecar, sha256_file
from vntools.base.errors import DataFault, NoInput, UsageFault, about
from vntools.pipeline.bench import kind_of
from vntools.pipeline.listener import Listener
from vntools.pipeline.peak import LimitOptions, limit_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from vntools.bench.devices import Device
    from vntools.bench.limits import Floor
    from vntools.bench.work import Work
    from vntools.export.graph import GraphStats
    from vntools.export.load import Loaded

_STAGE, _PRECISION, _SOURCE = "vntools.stage", "vntools.precision", "vntools.source_sha256"
_REBUILD = "rebuild the plan with vntools build-engine"


@dataclass(frozen=True)
class InspectOptions:
    """What to look at.

    Attributes:
        path: a plan or an ONNX file.
        onnx: of a plan, the graph that it was built from: the one that ``build-engine`` read,
            or the typed one of ``--keep-onnx``; None looks beside the plan.
        batch: samples at a time; None is the optimum of a plan, the graph's own, or 1.
        limit: whose limits to hold the graph against.
    """

    path: Path
    onnx: Path | None = None
    batch: int | None = None
    limit: LimitOptions = field(default_factory=LimitOptions)


@dataclass(frozen=True)
class Inspected:
    """What was found.

    Attributes:
        path: of the file.
        kind: ``engine`` or ``onnx``.
        sha256: of the file.
        size_bytes: of the file.
        sidecar: of a plan: what ``build-engine`` wrote beside it.
        graph: counts of the ONNX graph in the types that are executed; None where a plan's
            graph is not at hand.
        work: what it has to move and to multiply.
        floor: its least time; None where no limits are given.
    """

    path: Path
    kind: str
    sha256: str
    size_bytes: int
    sidecar: Mapping[str, Any] | None
    graph: GraphStats | None
    work: Work | None
    floor: Floor | None

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        from vntools.bench.limits import layer_record, work_record

        record: dict[str, Any] = {
            "path": str(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "bytes": self.size_bytes,
            "engine": self.sidecar,
            "graph": None if self.graph is None else self.graph.to_record(),
            "work": None,
            "floor": None if self.floor is None else self.floor.to_record(),
        }
        if self.work is not None:
            layers = [layer_record(layer) for layer in self.work.layers]
            record["work"] = {**work_record(self.work), "layers": layers}
        return record


def inspect(options: InspectOptions, listener: Listener) -> Inspected:
    """Look at a plan's sidecar or an ONNX graph, and work out its floors.

    Raises:
        UsageFault: ``inspect.kind``: the file is a checkpoint; ``inspect.onnx``: ``--onnx``
            with an ONNX file; ``inspect.graph``: ``--onnx`` is not what the plan was built
            from; ``inspect.typed``: limits are asked for and the typed graph is missing.
        NoInput: ``inspect.sidecar``: a plan has none.
        DataFault: ``plan.sha256``, ``plan.manifest``.
        VntoolsError: as the parts do.
    """
    kind = kind_of(options.path)
    if kind == "ckpt":
        raise UsageFault("inspect.kind", "a checkpoint is no graph yet",
                         hint="look at what vntools export makes of it",
                         path=options.path)  # fmt: skip
    if kind == "onnx" and options.onnx is not None:
        raise UsageFault("inspect.onnx", "--onnx goes with a plan")
    digest, batch = sha256_file(options.path), options.batch
    sidecar: dict[str, Any] | None = None
    if kind == "onnx":
        model = _loaded(options.path).model
    else:
        sidecar = _sidecar(options.path, digest)
        built = _Built.of(sidecar, options.path)
        model, batch = _graph_of(options, built, listener), batch or built.batch
    graph, work, floor = None, None, None
    if model is not None:
        from vntools.bench.limits import floor_of_work
        from vntools.bench.work import work_of
        from vntools.export.graph import stats

        with about(options.path):
            graph, work = stats(model.graph), work_of(model, batch)
        device = limit_of(options.limit, work.operations)
        floor = None if device is None else floor_of_work(work, device)
    elif options.limit != LimitOptions():
        raise UsageFault(
            "inspect.typed",
            "the floor follows from the graph that the plan was built from",
            hint="give it with --onnx; of INT8 the one that build-engine --keep-onnx wrote",
            path=options.path,
        )
    size = options.path.stat().st_size
    return Inspected(options.path, kind, digest, size, sidecar, graph, work, floor)


def onnx_floor(path: Path, batch: int | None, device: Device) -> Floor:
    """The least time of an ONNX file, in the types that it has.

    Raises:
        VntoolsError: as :func:`vntools.export.load.load_onnx`, and as
            :func:`vntools.bench.limits.floor_of`.
    """
    from vntools.bench.limits import floor_of

    model = _loaded(path).model
    with about(path):
        return floor_of(model, batch, device)


def _loaded(path: Path) -> Loaded:
    from vntools.export.gate import refuse_control_flow
    from vntools.export.load import load_onnx
    from vntools.export.naming import name_nodes

    loaded = load_onnx(path)
    refuse_control_flow(loaded.model.graph, path)
    name_nodes(loaded.model.graph)
    return loaded


def _sidecar(path: Path, digest: str) -> dict[str, Any]:
    """The sidecar of a plan.

    Raises:
        NoInput: ``inspect.sidecar``.
        DataFault: ``plan.sha256``.
    """
    sidecar = read_sidecar(path)
    if sidecar is None:
        raise NoInput(
            "inspect.sidecar",
            "it has no sidecar, and a plan is a program: it is not opened to look inside",
            hint=_REBUILD,
            path=path,
        )
    if sidecar["sha256"] != digest:
        raise DataFault("plan.sha256", "its bytes are not those that its sidecar names",
                        hint=_REBUILD, path=path)  # fmt: skip
    return sidecar


@dataclass(frozen=True)
class _Built:
    """What a sidecar says that a floor needs."""

    source: str
    sha256: str
    precision: str
    io_type: str
    batch: int | None
    wide: frozenset[str]

    @classmethod
    def of(cls, sidecar: Mapping[str, Any], path: Path) -> _Built:
        """Read it.

        Raises:
            DataFault: ``plan.manifest``.
        """
        try:
            optima = [int(shapes["opt"][0]) for shapes in sidecar["profile"].values()]
            asked = {str(c["conv"]): c["asked"] for c in sidecar["convolutions"]}
            for kernel in sidecar["kernels"]:
                _ = kernel["name"], kernel["type"], kernel["onnx"]
            return cls(
                Path(str(sidecar["source"]["name"])).name,
                str(sidecar["source"]["sha256"]),
                str(sidecar["precision"]),
                str(sidecar["io_type"]),
                next(iter(optima), None),
                frozenset(name for name, kind in asked.items() if kind == "fp32"),
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            raise DataFault(
                "plan.manifest", "its sidecar is damaged", hint=_REBUILD, path=path
            ) from e


def _graph_of(options: InspectOptions, built: _Built, listener: Listener) -> ir.Model | None:
    """The typed graph of a plan, or None where it cannot be had.

    Raises:
        UsageFault: ``inspect.graph``.
    """
    path = options.onnx
    if path is None:
        path = options.path.parent / built.source
        if not path.is_file() or sha256_file(path) != built.sha256:
            listener.note(f"the graph it was built from, {built.source}, is not beside it")
            return None
    from vntools.precision.pools import fix_pools

    loaded = _loaded(path)
    model, metadata = loaded.model, loaded.model.metadata_props
    typed = metadata.get(_STAGE) == "typed" and metadata.get(_PRECISION) == built.precision
    typed = typed and metadata.get(_SOURCE) == built.sha256
    if not typed and loaded.sha256 != built.sha256:
        raise UsageFault(
            "inspect.graph", "is not the graph that the plan was built from", path=path
        )
    if typed:
        return model
    fix_pools(model.graph)  # as build-engine does
    if built.precision == "fp32":
        return model
    if built.precision == "int8":
        listener.note("the graph beside it has no INT8; give the typed one with --onnx")
        return None
    from vntools.precision.floats import to_floats, with_followers

    kept = with_followers(n for n in model.graph if n.name in built.wide)
    return to_floats(model, built.precision, io_type=built.io_type, fp32=kept).model
