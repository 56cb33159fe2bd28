"""``vntools export`` against the usual module-level flow, side by side in one run.

    python docs/bench_export.py [--arch vanillanet_13] [--rounds 3] [--json FILE]
    python docs/bench_export.py --write-checkpoint FILE     # the checkpoint alone

The usual flow, written for this comparison: torch.load, build the network, merge its PyTorch
weights in float32, torch.onnx.export, onnxsim, write. It verifies nothing. Both start as fresh
processes from the same checkpoint (seeded weights under ``model`` and ``model_ema``), in
turns; seconds are wall clock of the whole process, memory is its peak resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.provenance import host, versions
from vntools.models.arch import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    import torch

    from vntools.models.vanillanet import DeployVanillaNet


def merged_module(arch: Architecture, state: Mapping[str, torch.Tensor]) -> DeployVanillaNet:
    """The deploy form of training weights, merged in float32 as a user would."""
    import torch

    from vntools.models.vanillanet import DeployVanillaNet

    merged: dict[str, torch.Tensor] = {}

    def folded(conv: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-6)
        bias = state.get(f"{conv}.bias", torch.zeros(len(scale)))
        shift = state[f"{norm}.bias"] + (bias - state[f"{norm}.running_mean"]) * scale
        return state[f"{conv}.weight"] * scale[:, None, None, None], shift

    def joined(
        first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        point = second[0][:, :, 0, 0]
        weight = (point @ first[0].flatten(1)).view(-1, *first[0].shape[1:])
        return weight.contiguous(), point @ first[1] + second[1]

    def put(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        merged[f"{name}.weight"], merged[f"{name}.bias"] = pair

    put("stem.0", joined(folded("stem1.0", "stem1.1"), folded("stem2.0", "stem2.1")))
    put("stem.1", folded("stem2.2", "stem2.2.bn"))
    for i in range(len(arch.strides)):
        s = f"stages.{i}"
        first, second = (folded(f"{s}.conv{j}.0", f"{s}.conv{j}.1") for j in (1, 2))
        put(f"{s}.conv", joined(first, second))
        put(f"{s}.act", folded(f"{s}.act", f"{s}.act.bn"))
    last = state["cls2.0.weight"], state["cls2.0.bias"]
    put("cls.2", joined(folded("cls1.2", "cls1.3"), last))
    deploy = DeployVanillaNet(arch).eval()
    deploy.load_state_dict(merged)
    return deploy


def usual_flow(ckpt: str, out: str) -> None:
    """What a user does today."""
    import onnx
    import onnxsim
    import torch

    from vntools.models.vanillanet import VanillaNet, initialize

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(ckpt, map_location="cpu", weights_only=True)
    arch = ARCHITECTURES[content["args"].model]
    network = VanillaNet(arch).eval()
    # What making the released network does: PyTorch's own draw, then a truncated normal one.
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(part)
    initialize(network, generator=torch.Generator())
    network.load_state_dict(content["model_ema"])
    deploy = merged_module(arch, network.state_dict())
    del network, content
    torch.onnx.export(
        deploy,
        (torch.zeros(2, 3, arch.image_size, arch.image_size),),
        out,
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        opset_version=20,
        verbose=False,
    )
    model, _ = onnxsim.simplify(out)
    onnx.save(model, out)


def timed(command: list[str]) -> dict[str, float]:
    """Seconds and peak megabytes of a process that must succeed."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(command)}")
    return {"seconds": time.perf_counter() - start, "peak_mb": usage.ru_maxrss / 1000}


def main() -> None:
    """Run both flows in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vanillanet_13")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write-checkpoint", type=Path)
    options = parser.parse_args()
    from vntools.models.seeded import write_seeded

    if options.write_checkpoint:
        write_seeded(options.write_checkpoint, ARCHITECTURES[options.arch])
        return
    runs: dict[str, list[dict[str, float]]] = {"usual flow": [], "vntools export": []}
    with tempfile.TemporaryDirectory() as folder:
        ckpt, out = Path(folder, "net.pth"), Path(folder, "net.onnx")
        write_seeded(ckpt, ARCHITECTURES[options.arch])
        here = [sys.executable, __file__]
        export = [
            sys.executable,
            "-c",
            "from vntools.cli import main; main()",
            "export",
            "--ckpt",
            str(ckpt),
        ]
        commands = {
            "usual flow": [*here, "--usual-flow", str(ckpt), str(out)],
            "vntools export": [*export, "--out", str(out), "--force"],
        }
        for _ in range(options.rounds):
            for name, command in commands.items():
                out.unlink(missing_ok=True)
                runs[name].append(timed(command))
                print(name, {k: round(v, 2) for k, v in runs[name][-1].items()}, flush=True)
        size_mb = ckpt.stat().st_size / 1e6
    record: dict[str, Any] = {
        "schema": 1,
        "arch": options.arch,
        "checkpoint_mb": round(size_mb, 1),
        "host": host(),
        "versions": versions("torch", "onnx", "onnxruntime-gpu", "onnxsim", "numpy"),
        "runs": runs,
        "median": {
            name: {k: statistics.median(r[k] for r in rs) for k in ("seconds", "peak_mb")}
            for name, rs in runs.items()
        },
    }
    usual, ours = (record["median"][n] for n in runs)
    ratio = record["ratio"] = {k: ours[k] / usual[k] for k in usual}
    print(
        f"{options.arch}, checkpoint of {size_mb:.0f} MB, medians of {options.rounds} rounds"
    )
    for name, median in record["median"].items():
        print(f"  {name:15} {median['seconds']:6.1f} s  {median['peak_mb']:6.0f} MB")
    print(f"  {'ratio':15} {ratio['seconds']:6.2f}    {ratio['peak_mb']:6.2f}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--usual-flow"]:
        usual_flow(*sys.argv[2:])
    else:
        main()
