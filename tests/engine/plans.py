"""A plan and its sidecar, as ``build-engine`` writes them."""

from __future__ import annotations

__all__ = ["PLAN", "sidecar_of"]

from typing import Any

from vntools.base.artifacts import sha256_bytes

PLAN = b"ftrt" + bytes(range(200))


def sidecar_of(plan: bytes) -> dict[str, Any]:
    """What a sidecar says of a plan of TensorRT 11.4.1, for compute capability 8.0."""
    shape = [3, 5, 4]
    return {
        "schema": 1,
        "sha256": sha256_bytes(plan),
        "bytes": len(plan),
        "precision": "fp16",
        "io_type": "fp32",
        "source": {"name": "net.onnx", "sha256": "1" * 64},
        "flavour": "tensorrt",
        "version": "11.4.1",
        "compute_capabilities": [80],
        "profile": {"input": {"min": [1, *shape], "opt": [1, *shape], "max": [8, *shape]}},
        "inputs": [{"name": "input", "shape": [-1, *shape], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [-1, 4, *shape[1:]], "dtype": "float32"}],
        "model": {},
        "kernels": [],
    }
