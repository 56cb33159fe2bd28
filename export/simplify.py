"""onnxsim over a graph whose weights stay where they are."""

from __future__ import annotations

__all__ = ["tidy"]

import onnx_ir as ir

from vntools.base.errors import InternalFault
from vntools.export.graph import without_weights


def tidy(model: ir.Model) -> ir.Model:
    """``model`` with shapes and constants folded by onnxsim, its large weights shared with it.

    Names, shapes and types of inputs and outputs stay. Nothing is fused: that is the passes'
    work.

    Raises:
        InternalFault: ``onnxsim.failed``.
    """
    import onnxsim

    light, held = without_weights(model, keep_matrices=True)
    try:
        proto, _ = onnxsim.simplify(
            ir.serde.serialize_model(light),
            skip_fuse_bn=True,
            initializers_as_constants=True,
        )
    except Exception as e:
        raise InternalFault(
            "onnxsim.failed",
            f"onnxsim failed: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}",
        ) from e
    tidied = ir.serde.deserialize_model(proto)
    overridable = {v.name for v in model.graph.inputs}
    for value in [v for v in tidied.graph.inputs if v.name in held]:
        assert value.name is not None
        if value.name not in overridable:
            tidied.graph.inputs.remove(value)
        if value.uses() or value.name in overridable:
            value.const_value = held[value.name]
            tidied.graph.register_initializer(value)
    return tidied
