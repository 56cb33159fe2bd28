"""onnxsim over a graph whose weights stay where they are."""

from __future__ import annotations

__all__ = ["tidy"]

import math

import onnx_ir as ir

from vntools.base.errors import InternalFault

# Elements; up to here a constant may take part in folding (shapes, axes, scalars). Larger ones are
# weights: onnxsim sees them as inputs, so they are neither copied nor touched.
_LARGEST_CONSTANT = 256


def tidy(model: ir.Model) -> ir.Model:
    """``model`` with shapes and constants folded by onnxsim, its large weights shared with it.

    Names, shapes and types of inputs and outputs stay. Nothing is fused: that is the passes' work.

    Raises:
        InternalFault: ``onnxsim.failed``.
    """
    import onnxsim

    held: dict[str, ir.TensorProtocol] = {}
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if math.prod(tensor.shape.numpy()) > _LARGEST_CONSTANT:
            held[name] = tensor
            del light.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
            light.graph.inputs.append(value)
    try:
        proto, _ = onnxsim.simplify(
            ir.serde.serialize_model(light), skip_fuse_bn=True, initializers_as_constants=True
        )
    except Exception as e:
        raise InternalFault(
            "onnxsim.failed",
            f"onnxsim failed: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}",
        ) from e
    tidied = ir.serde.deserialize_model(proto)
    for value in [v for v in tidied.graph.inputs if v.name in held]:
        assert value.name is not None
        tidied.graph.inputs.remove(value)
        if value.uses():
            value.const_value = held[value.name]
            tidied.graph.register_initializer(value)
    return tidied
