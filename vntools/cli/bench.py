"""``vntools bench``: latency and throughput of plans, ONNX files and checkpoints."""

from __future__ import annotations

__all__ = ["command"]

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vntools.base.errors import CheckFailed, UsageFault, quoted
from vntools.cli._shared import Console, json_option
from vntools.cli._trust import trust_options

if TYPE_CHECKING:
    from vntools.bench.measurement import BenchOptions
    from vntools.pipeline.bench import Artifact
    from vntools.pipeline.peak import LimitOptions

_KINDS = ("engine", "onnx", "ckpt")


def _numbers(kind: Callable[[str], Any], example: str) -> Callable[..., tuple[Any, ...]]:
    """A callback for a list of numbers between commas."""

    def callback(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as e:
            raise click.BadParameter(
                f"{text!r} is no list of numbers such as {example}"
            ) from e

    return callback


def _percent(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise click.BadParameter(f"{text!r} is no percentage such as 1%")
    return percent


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]")
@click.option("--against", multiple=True, metavar="FILE",
              help="Measure FILE too, in turns with the first, and tell which is faster; more "
              "may follow. FILE@RUNNER chooses its runner.")  # fmt: skip
@click.option("--same", default="1%", show_default=True, callback=_percent, metavar="PERCENT",
              help="Ratios this close to 1 count as the same.")  # fmt: skip
@click.option("--fail-if", type=click.Choice(["slower"]),
              help="Exit with 1 if the first file is slower than another.")  # fmt: skip
@click.option("--engine", "--loadEngine", metavar="FILE", help="A TensorRT plan.")
@click.option("--onnx", metavar="FILE", help="An ONNX file, in ONNX Runtime.")
@click.option("--ckpt", metavar="FILE", help="A checkpoint, in PyTorch.")
@click.option("--runner", default="auto", show_default=True, metavar="NAME",
              help="torch, torch-compile, torch-cuda-graph, ort, ort-cuda, ort-tensorrt or "
              "openvino.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="auto: a GPU where one answers.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="N", help="On a CPU.")
@trust_options
@click.option("--batch", "batches", default="1", show_default=True, metavar="N[,N]",
              callback=_numbers(int, "1,8,64"), help="Images in a query.")  # fmt: skip
@click.option("--streams", "--infStreams", type=click.IntRange(1), default=1,
              show_default=True, metavar="N", help="Queries at the same time.")  # fmt: skip
@click.option("--warm-up", "--warmUp", type=click.FloatRange(0), default=200,
              show_default=True, metavar="MS", help="Time not counted.")  # fmt: skip
@click.option("--duration", type=click.FloatRange(0), default=3, show_default=True,
              metavar="S", help="Least measured time.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(1), default=10, show_default=True,
              metavar="N", help="Least number of queries.")  # fmt: skip
@click.option("--max-noise", callback=_percent, metavar="PERCENT",
              help="Go on until the median is known to this.")  # fmt: skip
@click.option("--time-limit", type=click.FloatRange(0), default=60, show_default=True,
              metavar="S", help="Of --max-noise.")  # fmt: skip
@click.option("--percentile", default="90,95,99", show_default=True, metavar="P[,P]",
              callback=_numbers(float, "90,95,99"), help="Percentiles to report.")  # fmt: skip
@click.option("--compat", type=click.Choice(["trtexec10", "trtexec11"]), default="trtexec11",
              show_default=True, help="Whose defaults: 10 has no CUDA graph, waits without "
              "spinning and includes transfers.")  # fmt: skip
@click.option("--include-data-transfers/--no-data-transfers",
              "--includeDataTransfers/--noDataTransfers", "transfers", default=None,
              help="Copy inputs and outputs in every query.")  # fmt: skip
@click.option("--cuda-graph/--no-cuda-graph", "--useCudaGraph/--noCudaGraph", default=None,
              help="Replay one, or launch kernel by kernel.")  # fmt: skip
@click.option("--spin-wait/--no-spin-wait", "--useSpinWait/--noSpinWait", "spin", default=None,
              help="How the host waits.")  # fmt: skip
@click.option("--limit", metavar="DEVICE", help="Hold the median against this device's "
              "limits, such as 'H100 SXM'; on a known GPU its own.")  # fmt: skip
@click.option("--peak", type=float, metavar="TFLOPS", help="Limit, with --bandwidth.")
@click.option("--bandwidth", type=float, metavar="GB/S", help="Limit, with --peak.")
@click.option("--measure-peak", is_flag=True, help="Measure the limits here.")
@click.option("--dump-profile", "--dumpProfile", is_flag=True, help="Time the layers.")
@click.option("--export-times", "--exportTimes", type=Path, metavar="FILE",
              help="Every query, as trtexec writes it.")  # fmt: skip
@click.option("--export-profile", "--exportProfile", type=Path, metavar="FILE",
              help="Times of the layers, as trtexec writes them.")  # fmt: skip
@click.option("--export-layer-info", "--exportLayerInfo", type=Path, metavar="FILE",
              help="What the engine inspector says.")  # fmt: skip
@click.option("--suite", type=click.Choice(["table1"]),
              help="The networks of the paper's Table 1, side by side.")  # fmt: skip
@click.option("--device-dir", type=Path, metavar="DIR", help="Where a suite is kept.")
@click.option("--report", type=Path, metavar="FILE", help="Write a page of HTML too.")
@click.option("--force", is_flag=True, help="Overwrite files that vntools did not write.")
@click.option("--samples", is_flag=True, help="Put every query into the JSON document.")
@json_option
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Measure latency and throughput by trtexec's definitions."""
    from vntools.base.artifacts import check_output, published

    report: Path | None = given["report"]
    if report is not None:
        check_output(report, force=given["force"])
    titled, record, text, failure = _run(console, given)
    console.result(record if given["samples"] else _without_samples(record), text)
    if report is not None:
        from vntools.report.page import page

        written = page(record, title=titled, command=shlex.join(["vntools", *sys.argv[1:]]))
        with published(report, force=given["force"]) as file:
            file.write(written.encode())
    if failure is not None:
        raise failure


_Result = tuple[str, dict[str, Any], str, Exception | None]


def _run(console: Console, given: dict[str, Any]) -> _Result:
    """Title, record, text, and the error to end with."""
    from vntools.bench.measurement import BenchOptions

    old = given["compat"] == "trtexec10"

    def choice(name: str, *, new: bool) -> bool:
        return given[name] if given[name] is not None else new is not old

    options = BenchOptions(
        warm_up_ms=given["warm_up"],
        duration_s=given["duration"],
        iterations=given["iterations"],
        percentiles=given["percentile"],
        batch=given["batches"][0],
        transfers=choice("transfers", new=False),
        spin=choice("spin", new=True),
        streams=given["streams"],
        max_noise_percent=given["max_noise"],
        time_limit_s=given["time_limit"],
    )
    given["cuda_graph"] = choice("cuda_graph", new=True)
    if given["suite"] is not None:
        return _suite(console, given, options)
    if given["device_dir"] is not None:
        raise UsageFault("bench.suite", "--device-dir goes with --suite")
    if given["against"] and _are_results(given):
        return _from_files(given)
    artifacts = _artifacts(given)
    if given["against"]:
        return _side_by_side(console, given, options, artifacts)
    if given["fail_if"] is not None:
        raise UsageFault("bench.against", "--fail-if goes with --against")
    if len(artifacts) > 1:
        raise UsageFault(
            "bench.artifact",
            f"{len(artifacts)} files to measure",
            hint="give one, or hold them side by side with --against",
        )
    return _measure(console, given, options, next(iter(artifacts.values())))


def _artifacts(given: dict[str, Any]) -> dict[str, Artifact]:
    """What to measure, by the name to show; the first is the one in question.

    Raises:
        UsageFault: ``bench.artifact``: there is no file; ``bench.runner``: no such runner.
        NoInput: a file is missing.
    """
    from vntools.base.artifacts import require_file
    from vntools.engine.plan import Trust
    from vntools.pipeline.bench import RUNNERS, Artifact, kind_of

    asked = [(given[kind], kind) for kind in _KINDS if given[kind] is not None]
    told = [*given["files"][:1], *given["against"], *given["files"][1:]]
    asked += [(text, None) for text in told]
    if not asked:
        raise UsageFault("bench.artifact", "no file to measure", hint="name one")
    found: dict[str, Artifact] = {}
    for text, kind in asked:
        path, _, runner = text.rpartition("@")
        if Path(text).exists() or not path:
            path, runner = text, given["runner"]
        elif runner not in RUNNERS:
            if Path(path).exists():
                raise UsageFault(
                    "bench.runner",
                    f"no runner is called {quoted(runner)}",
                    hint=f"give one of {', '.join(RUNNERS)}",
                )
            path, runner = text, given["runner"]
        file = require_file(Path(path))
        name, count = text, 1
        while name in found:
            count += 1
            name = f"{text} ({count})"
        found[name] = Artifact(
            **{kind or kind_of(file): file},
            device=given["device"],
            threads=given["threads"],
            trust=Trust(given["trust_plan"], given["sha256"]),
            cuda_graph=given["cuda_graph"],
            runner=runner,
        )
    return found


def _limit(given: dict[str, Any]) -> LimitOptions:
    from vntools.pipeline.peak import LimitOptions

    measure = "auto" if given["measure_peak"] else None
    return LimitOptions(given["limit"], given["peak"], given["bandwidth"], measure)


def _measure(
    console: Console, given: dict[str, Any], options: BenchOptions, artifact: Artifact
) -> _Result:
    from vntools.pipeline.sweep import Files, SweepOptions, sweep
    from vntools.report.rows import layer_rows, rows, sweep_rows

    files = Files(
        given["export_times"],
        given["export_profile"],
        given["export_layer_info"],
        given["force"],
    )
    done = sweep(
        artifact,
        SweepOptions(
            options,
            given["batches"],
            given["dump_profile"],
            _limit(given),
            files,
        ),
        console,
    )
    records = [one.to_record(samples=True) for one in done]
    if console.json:
        for one in done:
            for text in one.measurement.warnings():
                console.warn("bench.measurement", text)
    if len(done) > 1:
        record: dict[str, Any] = {"schema": 1, "measurements": records}
        return artifact.path.name, record, "\n".join(sweep_rows(done)), None
    lines = rows(done[0].measurement, done[0].floor)
    if given["dump_profile"]:
        lines += layer_rows(done[0].layers())
    return artifact.path.name, records[0], "\n".join(lines), None


_FILES = ("dump_profile", "export_times", "export_profile", "export_layer_info")
_LIMITS = ("limit", "peak", "bandwidth", "measure_peak")


def _said(given: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Which of these options were given."""
    return ["--" + name.replace("_", "-") for name in names if given[name]]


def _without_samples(record: dict[str, Any]) -> dict[str, Any]:
    if "measurements" in record:
        return {
            **record,
            "measurements": [_without_samples(m) for m in record["measurements"]],
        }
    return {name: value for name, value in record.items() if name != "samples"}


def _side_by_side(
    console: Console,
    given: dict[str, Any],
    options: BenchOptions,
    artifacts: dict[str, Artifact],
) -> _Result:
    """Compare the first with the others."""
    from vntools.pipeline.side_by_side import side_by_side
    from vntools.report.comparison import comparison_text

    wrong = _said(given, (*_FILES, *_LIMITS))
    if wrong or len(given["batches"]) > 1 or options.streams > 1:
        wrong = wrong or ["several batches or streams"]
        raise UsageFault("bench.against", f"--against does not go with {', '.join(wrong)}")
    done = side_by_side(artifacts, options, same=given["same"] / 100, listener=console)
    failure = None
    if given["fail_if"] is not None:
        try:
            done.require_not_slower()
        except CheckFailed as e:
            failure = e
    record = done.to_record(samples=given["samples"])
    return " against ".join(artifacts), record, comparison_text(done), failure


def _are_results(given: dict[str, Any]) -> bool:
    """Whether what is to be compared was measured before.

    Raises:
        UsageFault: ``bench.against``: some of it was.
    """
    from vntools.bench.compare_records import is_record

    named = [given[kind] for kind in _KINDS if given[kind] is not None]
    results = [is_record(file) for file in (*named, *given["files"], *given["against"])]
    if any(results) and not all(results):
        raise UsageFault("bench.against", "a result is compared with results only")
    return all(results)


def _from_files(given: dict[str, Any]) -> _Result:
    """Compare results that were measured apart, if their environments are alike."""
    from vntools.bench.compare import require_not_slower
    from vntools.bench.compare_records import compare_records, read_record
    from vntools.report.comparison import relations_text

    if wrong := _said(given, (*_KINDS, *_FILES, *_LIMITS, "report")):
        raise UsageFault("bench.against", f"results do not go with {', '.join(wrong)}")
    first, *others = [*given["files"], *given["against"]]
    records = {name: read_record(name) for name in (first, *others)}
    found = {
        name: compare_records(records[first], records[name], same=given["same"] / 100)
        for name in others
    }
    failure = None
    if given["fail_if"] is not None:
        try:
            require_not_slower(first, found)
        except CheckFailed as e:
            failure = e
    medians = {name: record["latency_ms"]["median"] for name, record in records.items()}
    document = {
        "results": medians,
        "relations": {name: asdict(relation) for name, relation in found.items()},
    }
    return " against ".join(records), document, relations_text(medians, found), failure


def _suite(console: Console, given: dict[str, Any], options: BenchOptions) -> _Result:
    """The networks of Table 1."""
    from vntools.pipeline.suite import SuiteOptions, run_suite
    from vntools.report.suite import suite_text

    wrong = _said(given, (*_KINDS, *_FILES, "fail_if"))
    wrong += ["--runner"] if given["runner"] != "auto" else []
    wrong += ["several batches"] if len(given["batches"]) > 1 else []
    if given["device_dir"] is None or given["files"] or given["against"] or wrong:
        also = f", nor {', '.join(wrong)}" if wrong else ""
        raise UsageFault("bench.suite", f"a suite takes --device-dir and no files{also}")
    done = run_suite(
        SuiteOptions(
            given["device_dir"],
            options,
            given["device"],
            threads=given["threads"],
            cuda_graph=given["cuda_graph"],
            limit=_limit(given),
        ),
        console,
    )
    return "Table 1", done.to_record(), suite_text(done), None
