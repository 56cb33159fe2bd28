"""The gate on what was built: every convolution in the precision that was asked for.

A strongly typed network should leave TensorRT no choice; here it is read back from the
kernels. A convolution is found by the ONNX node's name in the kernels' metadata. Several
kernels may name it: the one that does it is the one that holds its weights, not a cast or a
transpose in front of it. Judged are that kernel's activations and weights; its scales of one
element and what it writes (a cast behind the convolution may be fused into it) say nothing
about the precision it computes in.
"""

from __future__ import annotations

__all__ = ["ConvReport", "check_convolutions"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vntools.base.errors import CheckFailed, UsageFault, first_three
from vntools.engine.kernels import Kernel

_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_NEXT = "try another TensorRT, or report this with both versions"


@dataclass(frozen=True)
class ConvReport:
    """How one convolution was built.

    Attributes:
        conv: name of the ONNX Conv node.
        asked: the precision asked for; fp32 allows TF32, which is a way to execute fp32.
        kernel: name of the kernel that does it, empty where none does.
        layer_type: that kernel's type.
        activations: distinct types of the activations it reads.
        weights: distinct types of its weights.
    """

    conv: str
    asked: str
    kernel: str
    layer_type: str
    activations: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def as_asked(self) -> bool:
        """Whether activations and weights are what was asked for."""
        return self.activations == self.weights == (self.asked,)

    def found(self) -> str:
        """What was built in place of what was asked for, in a few words."""
        if not self.kernel:
            return f"{self.conv} (no kernel has its weights)"
        types = "/".join(dict.fromkeys((*self.activations, *self.weights))) or "no known type"
        return f"{self.conv} ({types})"

    def to_record(self) -> dict[str, Any]:
        """The report as a sidecar holds it."""
        return asdict(self)


def check_convolutions(
    convs: Mapping[str, str], kernels: Sequence[Kernel] | None
) -> tuple[ConvReport, ...]:
    """Hold every convolution of a graph against the kernels that were built.

    Args:
        convs: the precision asked for (fp32, fp16, bf16 or int8) by the name of the ONNX Conv
            node.
        kernels: the kernels of the plan; None where TensorRT did not tell them.

    Returns:
        A report for each convolution, in the order of ``convs``.

    Raises:
        CheckFailed: ``engine.precision``: one has another precision or no kernel, or the
            kernels are unknown.
        UsageFault: ``engine.precision_name``: an unknown precision is asked for.
    """
    for conv, asked in convs.items():
        if asked not in _PRECISIONS:
            raise UsageFault(
                "engine.precision_name",
                f"no precision {asked!r}, asked for {conv}",
                hint=f"it is one of {', '.join(_PRECISIONS)}",
            )
    if not kernels:
        raise CheckFailed(
            "engine.precision",
            "TensorRT did not say which kernels it built, so their precision is unknown",
            hint=_NEXT,
        )
    reports = tuple(_report(conv, asked, kernels) for conv, asked in convs.items())
    wrong = [r for r in reports if not r.as_asked]
    if wrong:
        asked_for = "/".join(dict.fromkeys(r.asked for r in wrong))
        raise CheckFailed(
            "engine.precision",
            f"{len(wrong)} of {len(reports)} convolutions were not built in {asked_for}: "
            f"{first_three(r.found() for r in wrong)}",
            hint=_NEXT,
        )
    return reports


def _report(conv: str, asked: str, kernels: Sequence[Kernel]) -> ConvReport:
    holders = [k for k in kernels if conv in k.onnx_layers and k.weights]
    if not holders:
        return ConvReport(conv, asked, "", "", (), ())
    kernel = max(holders, key=_likelihood)
    weights = tuple(dict.fromkeys(t.dtype for t in kernel.weights))
    activations = tuple(dict.fromkeys(t.dtype for t in kernel.inputs))
    # A generated kernel's name lists what it does; this one casts what it reads and goes on.
    if kernel.generated and kernel.name.startswith("__myl_Cast"):
        activations = weights
    return ConvReport(conv, asked, kernel.name, kernel.layer_type, activations, weights)


def _likelihood(kernel: Kernel) -> tuple[bool, int]:
    """An order of the kernels that name a convolution, in which the one that does it is last.

    Generated kernels convolve only where nothing else does; and one that merely adds the bias,
    after a reduction that was split, holds a vector at most.
    """
    return not kernel.generated, max(w.elements for w in kernel.weights)
