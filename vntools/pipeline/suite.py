"""The paper's Table 1, measured: every network built and run side by side on one device."""

from __future__ import annotations

__all__ = ["Row", "Suite", "SuiteOptions", "run_suite"]

import importlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import read_sidecar, sha256_file
from vntools.base.errors import CannotCreate, Unavailable, VntoolsError
from vntools.models.arch import ARCHITECTURES, Architecture, Published
from vntools.models.baselines import BASELINES
from vntools.pipeline.bench import Artifact, open_artifact
from vntools.pipeline.listener import Listener, Mute, percent
from vntools.pipeline.peak import LimitOptions
from vntools.pipeline.sweep import Floors

if TYPE_CHECKING:
    from vntools.bench.compare import Comparison
    from vntools.bench.devices import Device
    from vntools.bench.measurement import BenchOptions
    from vntools.runtime.base import Runner


@dataclass(frozen=True)
class SuiteOptions:
    """What :func:`run_suite` measures, and where it keeps what it makes.

    Attributes:
        folder: one ONNX file a network is made here, and a plan where there is a GPU; what is
            there already is used again. Other ONNX files in it are measured too.
        bench: how.
        device: as of :class:`vntools.pipeline.bench.Artifact`, as the next two.
        threads: on a CPU.
        cuda_graph: on a GPU.
        architectures: the VanillaNets, by name.
        baselines: build the other networks of Table 1 too, where timm is installed.
        limit: what the floors are of.
    """

    folder: Path
    bench: BenchOptions
    device: str = "auto"
    threads: int | None = None
    cuda_graph: bool = True
    architectures: Mapping[str, Architecture] = field(default_factory=lambda: ARCHITECTURES)
    baselines: bool = True
    limit: LimitOptions = field(default_factory=LimitOptions)


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes:
        name: as Table 1 has it, or of the file.
        depth: non-linear layers, as the paper counts them.
        published: its figures in the paper; None for a file of one's own.
        parameters_m: of the graph, in millions.
        gmacs: multiply-accumulates of the graph, 1e9.
        median_ms: measured; None where ``why`` says why not.
        floor_ms: the least time on the device whose limits are known.
        why: what failed.
    """

    name: str
    depth: int | None = None
    published: Published | None = None
    parameters_m: float | None = None
    gmacs: float | None = None
    median_ms: float | None = None
    floor_ms: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Suite:
    """The table, and the comparison that it is of."""

    rows: tuple[Row, ...]
    comparison: Comparison | None

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "comparison": None if self.comparison is None else self.comparison.to_record(),
        }


@dataclass(frozen=True)
class _Job:
    """A network to measure: its row, its file, and how that is made if it is not there."""

    row: Row
    path: Path
    make: Callable[[Path], None] | None = None


def run_suite(options: SuiteOptions, listener: Listener) -> Suite:
    """Make what is missing, then measure all side by side.

    A network that cannot be made or run is a row that says why. What was made stays in the
    folder, so after an interruption the next run goes on.

    Raises:
        CannotCreate: ``suite.folder``: the folder cannot be made.
        VntoolsError: as :func:`vntools.bench.compare.compare`.
    """
    import numpy as np

    from vntools.bench.compare import compare
    from vntools.bench.measure import measure, random_feeds

    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CannotCreate("suite.folder", "it cannot be made", path=options.folder) from e
    jobs = _jobs(options, listener)
    rows: dict[str, Row] = {}
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        device: Device | None = None
        with listener.progress("make", len(jobs)) as advance:
            for job in jobs:
                row = job.row
                try:
                    row = _made(job)
                    artifact = _artifact(job.path, options, listener)
                    runner = stack.enter_context(open_artifact(artifact, listener))
                    runners[row.name] = runner
                    floors = Floors(artifact, options.limit, runner, listener, device=device)
                    floor = floors.of(options.bench.batch)
                    device = floors.device
                    row = replace(row, floor_ms=None if floor is None else floor.ms)
                    feeds = random_feeds(
                        runner.inputs, options.bench.batch, seed=options.bench.seed
                    )
                    runner.run(feeds)
                except VntoolsError as e:
                    runners.pop(row.name, None)
                    row = replace(row, why=e.message)
                rows[row.name] = row
                advance()
        comparison = None
        with percent(listener, "measure") as tick:
            if len(runners) > 1:
                comparison = compare(runners, options.bench, tick=tick)
                medians = {c.name: c.median_ms for c in comparison.contenders}
            else:
                medians = {
                    name: float(np.median(measure(r, options.bench, tick=tick).latency_ms))
                    for name, r in runners.items()
                }
    found = (replace(row, median_ms=medians.get(name)) for name, row in rows.items())
    return Suite(tuple(found), comparison)


def _jobs(options: SuiteOptions, listener: Listener) -> list[_Job]:
    """Files of the VanillaNets, of the other networks, and whatever else lies there."""
    folder = options.folder
    jobs = [
        _Job(
            Row(name, arch.depth, arch.published),
            folder / f"{name}.onnx",
            partial(_make_vanillanet, arch),
        )
        for name, arch in options.architectures.items()
    ]
    missing = options.baselines and find_spec("timm") is None
    if missing:
        listener.note("timm is not installed; of the other networks only files are measured")
    for baseline in BASELINES:
        path = folder / f"{baseline.timm}.onnx"
        if path.exists() or (options.baselines and not missing):
            row = Row(baseline.name, baseline.depth, baseline.published)
            jobs.append(_Job(row, path, partial(_make_baseline, baseline.timm)))
    known = {job.path for job in jobs}
    own = sorted(p for p in folder.glob("*.onnx") if p not in known)
    return jobs + [_Job(Row(path.stem), path) for path in own]


def _made(job: _Job) -> Row:
    """The row with what its file holds, made first if it is not there."""
    from vntools.export.graph import stats
    from vntools.export.load import load_onnx

    if job.make is not None and not job.path.exists():
        job.make(job.path)
    counted = stats(load_onnx(job.path).model.graph)
    macs = None if counted.macs is None else counted.macs / 1e9
    return replace(job.row, parameters_m=counted.parameters / 1e6, gmacs=macs)


def _make_vanillanet(arch: Architecture, path: Path) -> None:
    from vntools.models.seeded import write_seeded
    from vntools.pipeline.export import ExportOptions, export

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        ckpt = Path(folder, "seeded.pth")
        write_seeded(ckpt, arch)
        export(ExportOptions(ckpt, path), Mute())


def _make_baseline(name: str, path: Path) -> None:
    """A network of timm's, with random weights, simplified.

    Raises:
        Unavailable: ``suite.timm``: timm or the exporter does not work here.
    """
    from vntools.pipeline.simplify import SimplifyOptions, simplify

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder, "raw.onnx")
        try:
            import torch

            timm = importlib.import_module("timm")
            torch.manual_seed(0)
            network = timm.create_model(name, pretrained=False).eval()
            size = network.default_cfg["input_size"]
            torch.onnx.export(
                network,
                (torch.zeros(1, *size),),
                raw,
                input_names=["input"],
                output_names=["logits"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as e:
            why = (str(e).splitlines() or [type(e).__name__])[0][:200]
            raise Unavailable("suite.timm", f"timm's {name} cannot be exported: {why}") from e
        simplify(SimplifyOptions(raw, path), Mute())


def _artifact(path: Path, options: SuiteOptions, listener: Listener) -> Artifact:
    """The ONNX file, or where there is a GPU the FP16 plan of it."""
    from vntools.engine.backend import gpu_count
    from vntools.pipeline.engine import EngineOptions, build_engine

    if options.device == "cpu" or (options.device == "auto" and not gpu_count()):
        return Artifact(onnx=path, device="cpu", threads=options.threads)
    plan = path.with_suffix(".plan")
    sidecar = read_sidecar(plan) if plan.exists() else None
    if sidecar is None or sidecar.get("source", {}).get("sha256") != sha256_file(path):
        batch = options.bench.batch
        build_engine(
            EngineOptions(
                path, plan, precision="fp16", min_batch=batch, opt_batch=batch, max_batch=batch
            ),
            listener,
        )
    return Artifact(engine=plan, cuda_graph=options.cuda_graph)
