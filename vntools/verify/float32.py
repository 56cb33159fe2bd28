"""A float32 run of an ONNX graph in ONNX Runtime, to be held against float64."""

from __future__ import annotations

__all__ = ["run_float32"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import InternalFault
from vntools.export.graph import without_weights

Arrays = Mapping[str, NDArray[Any]]


def run_float32(
    model: ir.Model | bytes, feeds: Sequence[Arrays]
) -> list[dict[str, NDArray[Any]]]:
    """Outputs of ``model`` for each of ``feeds``.

    A model in memory lends its weights as inputs, so they are not copied; of bytes, those very
    bytes are run.

    Raises:
        InternalFault: ``verify.run``: ONNX Runtime cannot run it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    # Other work goes on beside this run; its threads must not spin while they wait.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    lent: dict[str, NDArray[Any]] = {}
    if isinstance(model, bytes):
        data = model
    else:
        # Nothing to fold without the weights, and the search takes long on a large graph.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        light, held = without_weights(model)
        data = ir.serde.serialize_model(light).SerializeToString()
        lent = {name: tensor.numpy() for name, tensor in held.items()}
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        used = {i.name for i in session.get_inputs()}
        lent = {k: v for k, v in lent.items() if k in used}
        runs = [session.run(names, {**lent, **feed}) for feed in feeds]
        return [dict(zip(names, map(_arrays, run), strict=True)) for run in runs]
    except Exception as e:
        raise InternalFault(
            "verify.run", f"ONNX Runtime failed: {str(e).splitlines()[0][:200]}"
        ) from e


def _arrays(value: Any) -> Any:
    """An output as an array, or as the list of them that a sequence is."""
    return list(map(np.asarray, value)) if isinstance(value, list) else np.asarray(value)
