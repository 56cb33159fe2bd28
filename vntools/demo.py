"""The demo: a real network on real images, all the way, in minutes on a CPU."""

from __future__ import annotations

__all__ = ["MIN_FP16_AGREEMENT", "MIN_TOP1_PERCENT", "DemoResult", "run_demo"]

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.errors import CheckFailed
from vntools.pipeline.engine import EngineBuilt, EngineOptions, build_engine
from vntools.pipeline.export import Exported, ExportOptions, export
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vntools.bench.compare import Comparison
    from vntools.models.data import Images

MIN_TOP1_PERCENT = 97.0
MIN_FP16_AGREEMENT = 0.995


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        images: test images that every top-1 is of.
        top1_percent: of the checkpoint in PyTorch, the exported graph and the FP16 graph in
            ONNX Runtime.
        agreement: share of images on which exported and FP16 graph answer as the checkpoint
            does.
        training, merged: the training graph and the exported graph.
        training_plan, merged_plan: FP16 plans of the two.
        latency: CPU latency of the two, measured side by side.
    """

    images: int
    top1_percent: dict[str, float]
    agreement: dict[str, float]
    training: Exported
    merged: Exported
    training_plan: EngineBuilt
    merged_plan: EngineBuilt
    latency: Comparison

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "images": self.images,
            "top1_percent": self.top1_percent,
            "agreement": self.agreement,
            "export": self.merged.to_record(),
            "kernels": {
                "training": len(self.training_plan.sidecar["kernels"]),
                "merged": len(self.merged_plan.sidecar["kernels"]),
            },
            "plan_bytes": {
                "training": self.training_plan.sidecar["bytes"],
                "merged": self.merged_plan.sidecar["bytes"],
            },
            "latency": self.latency.to_record(),
        }


def run_demo(folder: Path, listener: Listener) -> DemoResult:
    """Train on scikit-learn's digits, export, verify, type FP16, build plans, compare.

    Args:
        folder: an empty folder, for digits.pth, the ONNX files and the plans.
        listener: hears of every phase.

    Raises:
        CheckFailed: ``demo.top1`` or ``demo.agreement``: the promise of this demo does not
            hold.
        VntoolsError: as the parts do.
    """
    ckpt = folder / "digits.pth"
    test = _train(ckpt, listener)
    merged_onnx, training_onnx = folder / "digits.onnx", folder / "digits-training.onnx"
    listener.note("exporting, merged")
    merged = export(ExportOptions(ckpt, merged_onnx), listener)
    listener.note("exporting the training graph, for comparison")
    training = export(ExportOptions(ckpt, training_onnx, merge=False), listener)
    plans = [
        build_engine(EngineOptions(path, precision="fp16", backend="tensorrt-rtx"), listener)
        for path in (training_onnx, merged_onnx)
    ]
    answers = _answers(ckpt, merged_onnx, test, listener)
    want = answers["checkpoint"]
    agreement = {k: float((v == want).mean()) for k, v in answers.items() if k != "checkpoint"}
    top1 = {k: 100 * float((v == test.labels).mean()) for k, v in answers.items()}
    if not top1["checkpoint"] >= MIN_TOP1_PERCENT:
        raise CheckFailed("demo.top1", f"the network reached {top1['checkpoint']:.2f} % top-1")
    if agreement["exported"] != 1.0 or not agreement["fp16"] >= MIN_FP16_AGREEMENT:
        raise CheckFailed("demo.agreement", f"the graphs answer differently: {agreement}")
    latency = _side_by_side(training_onnx, merged_onnx, listener)
    return DemoResult(
        len(test), top1, agreement, training, merged, plans[0], plans[1], latency
    )


def _train(ckpt: Path, listener: Listener) -> Images:
    from vntools.models.arch import Architecture
    from vntools.models.data import digits
    from vntools.models.schedule import TrainOptions
    from vntools.models.train import EpochReport, train, write_checkpoint

    learn, test = digits()
    size = learn.preprocessing.image_size
    arch = Architecture("vanillanet", (64, 128, 256, 512), (2, 2, 1), image_size=size)
    options = TrainOptions(arch=arch)
    with listener.progress("deep training", options.epochs) as advance:

        def on_epoch(report: EpochReport) -> None:
            advance()
            listener.note(
                f"epoch {report.epoch + 1} of {options.epochs}: lambda "
                f"{report.activation_lambda:.2f}, test top-1 {report.top1_percent:.2f} %"
            )

        trained = train(options, learn, test, on_epoch=on_epoch)
    write_checkpoint(trained, ckpt, force=False)
    return test


def _answers(
    ckpt: Path, onnx: Path, test: Images, listener: Listener
) -> dict[str, NDArray[np.int64]]:
    """Top-1 of checkpoint, exported graph and FP16 graph for every test image, (n,) each."""
    import numpy as np
    import torch

    from vntools.base.artifacts import read_input
    from vntools.export.load import parse_onnx
    from vntools.models.checkpoint import load_checkpoint, to_module
    from vntools.precision.floats import emulated, to_floats
    from vntools.verify.float32 import run_float32

    with listener.progress("top-1 on the test images"):
        checkpoint = load_checkpoint(ckpt)
        x = test.batch(np.arange(len(test)), checkpoint.preprocessing)
        with torch.inference_mode():
            native = to_module(checkpoint)(torch.from_numpy(x)).numpy()
        data = read_input(onnx)
        feeds = [{"input": x}]
        exported = run_float32(data, feeds)[0]["logits"]
        half = run_float32(emulated(to_floats(parse_onnx(data)).model), feeds)[0]["logits"]
    logits = {"checkpoint": native, "exported": exported, "fp16": half}
    return {k: v.argmax(axis=1).astype(np.int64) for k, v in logits.items()}


def _side_by_side(training: Path, merged: Path, listener: Listener) -> Comparison:
    from vntools.base.artifacts import read_input
    from vntools.bench.compare import compare
    from vntools.bench.measurement import BenchOptions
    from vntools.runtime.onnx_runner import OnnxRunner

    with (
        listener.progress("latency, side by side"),
        OnnxRunner(read_input(training)) as before,
        OnnxRunner(read_input(merged)) as after,
    ):
        return compare({"training": before, "merged": after}, BenchOptions())
