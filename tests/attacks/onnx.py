"""ONNX files that a stranger may send, each made by code in a folder of its own.

``CORPUS`` holds them by name; the numbers in comments are rows of the catalogue of faults. A
file's companions (external data, and what it must not reach) lie in the folder too. One file
is one function of a few lines, and so the module is long.
"""

from __future__ import annotations

__all__ = ["CORPUS", "FLOATS", "network", "write"]

import pickle
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import parsed

Make = Callable[[Path], Path]
FLOATS = 12
"""Elements of the weight of :func:`network`: 4x3x1x1."""

_TEXT = """(float[1,3,8,8] x) => (float[1,4,8,8] y)
<float[4,3,1,1] W, float[4] scale, float[4] shift, float[4] mean, float[4] variance>
{ a = Conv(x, W) b = BatchNormalization(a, scale, shift, mean, variance) y = Relu(b) }"""
_WEIGHT, _VARIANCE = 0, 4  # among the initializers


def network() -> onnx.ModelProto:
    """Conv, BatchNormalization and Relu: nothing is wrong with it."""
    return parsed(_TEXT)


def write(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    """The model as ``m.onnx``."""
    path = folder / "m.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def _content(data: Callable[[], bytes]) -> Make:
    """A file of these bytes."""

    @wraps(data)
    def make(folder: Path) -> Path:
        return write(folder, data())

    return make


def _edit(change: Callable[[onnx.ModelProto], object]) -> Make:
    """The network, changed."""

    @wraps(change)
    def make(folder: Path) -> Path:
        model = network()
        change(model)
        return write(folder, model)

    return make


def _text(text: Callable[[], str], *, opset: int = 20, foreign: str = "") -> Make:
    """A graph in ONNX's text form."""

    @wraps(text)
    def make(folder: Path) -> Path:
        return write(folder, parsed(text(), opset=opset, foreign=foreign))

    return make


# 41 to 44: no model.


@_content
def empty() -> bytes:
    return b""


@_content
def html() -> bytes:
    return b"<!DOCTYPE html><html><body>404 not found</body></html>"


@_content
def lfs_pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@_content
def pickled() -> bytes:
    return pickle.dumps({"model": [1.0, 2.0]})


@_content
def archive() -> bytes:
    return b"PK\x03\x04" + bytes(60)


@_content
def garbage() -> bytes:
    return np.random.default_rng(0).bytes(4096)


@_content
def truncated() -> bytes:
    return network().SerializeToString()[:-7]


@_content
def truncated_between_fields() -> bytes:
    return network().SerializeToString()[:2]  # all of ir_version


@_content
def concatenated() -> bytes:
    return network().SerializeToString() * 2


# 45 to 47: weights in other files.


def external(folder: Path, location: str, **entries: str) -> Path:
    """The network whose first weight lies at ``location``; the folder may hold it."""
    model = network()
    tensor = model.graph.initializer[_WEIGHT]
    values = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "weights.bin").write_bytes(values)
    inside = folder / "in"
    inside.mkdir()
    return write(inside, model)


def external_parent(folder: Path) -> Path:
    return external(folder, "../weights.bin")


def external_absolute(folder: Path) -> Path:
    return external(folder, str(folder.resolve() / "weights.bin"))


def external_nameless(folder: Path) -> Path:
    return external(folder, "")


def external_dot(folder: Path) -> Path:
    return external(folder, ".")


def external_missing(folder: Path) -> Path:
    return external(folder, "nowhere.bin")


def external_symlink(folder: Path) -> Path:
    path = external(folder, "weights.bin")
    (path.parent / "weights.bin").symlink_to("../weights.bin")
    return path


def external_folder_symlink(folder: Path) -> Path:
    path = external(folder, "deep/weights.bin")
    (path.parent / "deep").symlink_to("..")
    return path


def external_hard_link(folder: Path) -> Path:
    path = external(folder, "weights.bin")
    (path.parent / "weights.bin").hardlink_to(folder / "weights.bin")
    return path


def _beside(folder: Path, **entries: str) -> Path:
    path = external(folder, "weights.bin", **entries)
    (folder / "weights.bin").rename(path.parent / "weights.bin")
    return path


def external_length_beyond(folder: Path) -> Path:
    return _beside(folder, length="4096")


def external_length_short(folder: Path) -> Path:
    return _beside(folder, length="4")


def external_length_negative(folder: Path) -> Path:
    return _beside(folder, length="-48")


def external_offset_beyond(folder: Path) -> Path:
    return _beside(folder, offset="4096")


def external_offset_negative(folder: Path) -> Path:
    return _beside(folder, offset="-4")


def external_nan(folder: Path) -> Path:
    path = _beside(folder)
    (path.parent / "weights.bin").write_bytes(np.full(FLOATS, np.nan, np.float32).tobytes())
    return path


# 49 to 51: wires.


@_edit
def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


@_edit
def self_loop(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "y"


@_edit
def undefined_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@_edit
def unsorted_nodes(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node.pop(0))


@_edit
def duplicate_tensor(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "a"
    model.graph.node[2].input[0] = "a"


@_edit
def duplicate_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[_WEIGHT])


@_edit
def duplicate_node(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


# 52: versions, operators, and what else a model may hold.


@_edit
def opset_0(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 0


@_edit
def opset_999(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


@_edit
def opset_none(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


@_edit
def ir_99(model: onnx.ModelProto) -> None:
    model.ir_version = 99


@_edit
def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "NoSuchOperator"


@_edit
def unknown_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="far.away", version=1)
    model.graph.node[2].domain = "far.away"


@_edit
def local_function(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="mine", version=1)
    model.graph.node[2].domain, model.graph.node[2].op_type = "mine", "Both"
    body = [helper.make_node("Relu", ["p"], ["q"])]
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("mine", "Both", ["p"], ["q"], body, opsets))


@_edit
def recursive_function(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="mine", version=1)
    model.graph.node[2].domain, model.graph.node[2].op_type = "mine", "Both"
    body = [helper.make_node("Both", ["p"], ["q"], domain="mine")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    model.functions.append(helper.make_function("mine", "Both", ["p"], ["q"], body, opsets))


@_edit
def sparse_initializer(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "W")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    sparse = helper.make_sparse_tensor(values, indices, [4, 3, 1, 1])
    del model.graph.initializer[_WEIGHT]
    model.graph.sparse_initializer.append(sparse)


@_edit
def training_info(model: onnx.ModelProto) -> None:
    step = [helper.make_node("Identity", ["W"], ["W_next"])]
    infos = [helper.make_tensor_value_info("W_next", TensorProto.FLOAT, [4, 3, 1, 1])]
    algorithm = helper.make_graph(step, "step", [], infos)
    bindings = [("W", "W_next")]
    info = helper.make_training_info(algorithm, bindings, None, None)
    model.training_info.append(info)


# 53 and 54: inputs and outputs.


@_edit
def dynamic_rank(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")


@_edit
def dynamic_height(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_param = "height"


@_edit
def no_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


@_edit
def overridable(model: onnx.ModelProto) -> None:
    info = helper.make_tensor_value_info("W", TensorProto.FLOAT, [4, 3, 1, 1])
    model.graph.input.append(info)


# 55 and 56: BatchNormalization.


@_text
def bn_training() -> str:
    return """(float[2,4,8,8] x) => (float[2,4,8,8] y)
        <float[4] scale, float[4] shift, float[4] mean, float[4] variance>
        { y, p, q = BatchNormalization<training_mode=1>(x, scale, shift, mean, variance) }"""


def _epsilon(value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].attribute.append(helper.make_attribute("epsilon", value))

    return change


def bn_negative_epsilon(folder: Path) -> Path:
    return _edit(_epsilon(-2.0))(folder)


def bn_zero_epsilon(folder: Path) -> Path:
    return _edit(_epsilon(0.0))(folder)


def _filled(index: int, value: float) -> Callable[[onnx.ModelProto], None]:
    """One element of an initializer is ``value``."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[index]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[-1] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def bn_negative_variance(folder: Path) -> Path:
    return _edit(_filled(_VARIANCE, -1.0))(folder)


# 57: control flow.


@_text
def control_flow() -> str:
    return """(float[1,3,8,8] x, bool k) => (float[1,4,8,8] y)
        <float[4,3,1,1] W>
        { a = Conv(x, W) y = If<
            then_branch = t () => (float[1,4,8,8] o) { o = Conv(x, W) },
            else_branch = e () => (float[1,4,8,8] p) { p = Relu(a) }>(k) }"""


@_text
def endless_loop() -> str:
    return """(float[1,3] x) => (float[1,3] y) <int64 turns, bool go>
        { turns = Constant<value_int=9223372036854775807>()
          go = Constant<value=bool {1}>()
          y = Loop<body = b (int64 i, bool c, float[1,3] z) => (bool d, float[1,3] w)
              { d = Identity(c) w = Add(z, z) }>(turns, go, x) }"""


# 60: attributes.


def _attribute(name: str, value: object) -> Make:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute(name, value))

    return _edit(change)


@_edit
def wrong_channels(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[_WEIGHT]
    wide = np.repeat(numpy_helper.to_array(tensor), 2, axis=1)
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def wrong_group(folder: Path) -> Path:
    return _attribute("group", 3)(folder)


@_edit
def attribute_of_a_function(model: onnx.ModelProto) -> None:
    attribute = helper.make_attribute("epsilon", 1e-5)
    attribute.ref_attr_name = "far"
    model.graph.node[1].attribute.append(attribute)


def zero_group(folder: Path) -> Path:
    return _attribute("group", 0)(folder)


def zero_stride(folder: Path) -> Path:
    return _attribute("strides", [0, 1])(folder)


def huge_stride(folder: Path) -> Path:
    return _attribute("strides", [1 << 31, 1])(folder)


def zero_dilation(folder: Path) -> Path:
    return _attribute("dilations", [0, 0])(folder)


def negative_pads(folder: Path) -> Path:
    return _attribute("pads", [-1, 0, 0, 0])(folder)


def huge_pads(folder: Path) -> Path:
    return _attribute("pads", [1 << 40, 0, 1 << 40, 0])(folder)


# 61: tensors.


@_edit
def short_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[_WEIGHT].raw_data = bytes(4 * FLOATS - 4)


@_edit
def long_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[_WEIGHT].raw_data = bytes(4 * FLOATS + 4)


def _dims(*dims: int) -> Make:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[_WEIGHT].dims[:] = dims

    return _edit(change)


def negative_dims(folder: Path) -> Path:
    return _dims(-4, -3, 1, 1)(folder)


def overflowing_dims(folder: Path) -> Path:
    return _dims(1 << 32, 1 << 32, 1, 1)(folder)


@_edit
def unknown_dtype(model: onnx.ModelProto) -> None:
    model.graph.initializer[_WEIGHT].data_type = 77


@_text
def huge_constant() -> str:
    """A graph of a few hundred bytes that asks for a terabyte."""
    return """(float[1] x) => (float[n] y)
        { shape = Constant<value_ints=[274877906944]>()
          big = Expand(x, shape) y = Relu(big) }"""


@_text
def huge_input() -> str:
    return "(float[1,3,100000,100000] x) => (float[1,3,100000,100000] y) { y = Relu(x) }"


@_text
def many_open_axes() -> str:
    """Even 16 along each of them is more than a memory holds."""
    return "(float[a,b,c,d,e,f,g,h,i] x) => (float[a,b,c,d,e,f,g,h,i] y) { y = Relu(x) }"


@_edit
def value_without_a_type(model: onnx.ModelProto) -> None:
    """Found by fuzzing: ONNX's inference raises what it says it does not."""
    info = helper.make_tensor_value_info("W", TensorProto.UNDEFINED, [4, 3, 1, 1])
    model.graph.value_info.append(info)


# 62: depth and names.


@_content
def deep_nesting() -> bytes:
    """An If in an If, and so on; protobuf writes no such message, so its fields are made."""

    def field(number: int, content: bytes) -> bytes:
        size, digits = len(content), bytearray()
        while size > 127:
            digits.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *digits, size]) + content

    graph = b""
    for _ in range(200):
        branch = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(2, b"y") + field(4, b"If") + field(5, branch))
    return network().SerializeToString() + field(7, graph)


@_edit
def strange_names(model: onnx.ModelProto) -> None:
    """Names that would write to a terminal, in a graph that is refused for another reason."""
    node = model.graph.node[2]
    node.name = "\x1b[2J\x1b[31mowned\nvntools: error[none]: all is well"
    node.op_type = "Sh\x1b[2Jell\n"


@_edit
def strange_names_of_a_good_graph(model: onnx.ModelProto) -> None:
    for at, node in enumerate(model.graph.node):
        node.name = f"\x1b[2J\nnode\u202e {at}"
    info = helper.make_tensor_value_info("W", TensorProto.FLOAT, [4, 3, 1, 1])
    name = info.name = model.graph.initializer[_WEIGHT].name = "\x1b[31mW\n"
    model.graph.node[0].input[1] = name
    model.graph.input.append(info)


# 63: numbers.


def nan_weight(folder: Path) -> Path:
    return _edit(_filled(_WEIGHT, np.nan))(folder)


def infinite_weight(folder: Path) -> Path:
    return _edit(_filled(_WEIGHT, np.inf))(folder)


@_edit
def nan_half(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.array([np.nan], np.float16), "half")
    model.graph.initializer.append(tensor)


@_text
def nan_constant() -> str:
    return """(float[1,3] x) => (float[1,3] y)
        { c = Constant<value=float[1] {nan}>() y = Add(x, c) }"""


# What is small and grows when it is worked on.


@_edit
def doubling_functions(model: onnx.ModelProto) -> None:
    """Forty functions, each of which calls the one before it twice: 2^40 nodes."""
    _double(model, 40)
    model.graph.node[2].domain, model.graph.node[2].op_type = "mine", "F39"


@_edit
def doubling_functions_unused(model: onnx.ModelProto) -> None:
    _double(model, 40)


@_edit
def function_called_often(model: onnx.ModelProto) -> None:
    """The functions are in bounds; the calls of the graph are too many."""
    _double(model, 14)
    calls = [helper.make_node("F13", ["x"], [f"of{i}"], domain="mine") for i in range(10)]
    model.graph.node.extend(calls)


def _double(model: onnx.ModelProto, count: int) -> None:
    model.opset_import.add(domain="mine", version=1)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    for i in range(count):
        kind, domain = (f"F{i - 1}", "mine") if i else ("Relu", "")
        body = [
            helper.make_node(kind, ["p"], ["m"], domain=domain),
            helper.make_node(kind, ["m"], ["q"], domain=domain),
        ]
        function = helper.make_function("mine", f"F{i}", ["p"], ["q"], body, opsets)
        model.functions.append(function)


@_edit
def negative_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -8


@_text
def doubling_sums() -> str:
    """x + x, sixty times over: one convolution, and a sum of 2^60 parts if it is made so."""
    sums = " ".join(f"s{i + 1} = Add(s{i}, s{i})" for i in range(60))
    return f"""(float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] W>
        {{ s0 = Conv(x, W) {sums} y = Identity(s60) }}"""


@_text
def window_without_end() -> str:
    """Written as a convolution it has 3e10 weights."""
    return """(float[1,3,8,8] x) => (float[1,4,h,w] y) <float[4,3,1,1] W>
        { p = AveragePool<kernel_shape=[100000,100000], pads=[50000,50000,50000,50000],
          count_include_pad=1>(x) y = Conv(p, W) }"""


CORPUS: dict[str, Make] = {
    make.__name__: make
    for make in (
        empty, html, lfs_pointer, pickled, archive, garbage, truncated,
        truncated_between_fields, concatenated,
        external_parent, external_absolute, external_nameless, external_dot,
        external_missing, external_symlink, external_folder_symlink, external_hard_link,
        external_length_beyond, external_length_short, external_length_negative,
        external_offset_beyond, external_offset_negative, external_nan,
        cycle, self_loop, undefined_input, unsorted_nodes, duplicate_tensor,
        duplicate_initializer, duplicate_node,
        opset_0, opset_999, opset_none, ir_99, unknown_operator, unknown_domain,
        local_function, recursive_function, sparse_initializer, training_info,
        dynamic_rank, dynamic_height, no_output, overridable,
        bn_training, bn_negative_epsilon, bn_zero_epsilon, bn_negative_variance,
        control_flow, endless_loop,
        wrong_channels, wrong_group, attribute_of_a_function, zero_group, zero_stride,
        huge_stride,
        zero_dilation, negative_pads,
        huge_pads,
        short_data, long_data, negative_dims, overflowing_dims, unknown_dtype, huge_constant,
        huge_input, many_open_axes, value_without_a_type,
        deep_nesting, strange_names, strange_names_of_a_good_graph,
        nan_weight, infinite_weight, nan_half, nan_constant,
        doubling_functions, doubling_functions_unused, function_called_often,
        negative_input, doubling_sums, window_without_end,
    )
}  # fmt: skip
