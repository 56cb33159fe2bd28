"""The same mathematics in other forms: types, opsets, ranks, functions, constants, names."""

from __future__ import annotations

__all__ = ["GRAPHS"]

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.collection.base import Graph, collapse, keep
from tests.collection.reasons import AXIS

_REPVGG = ("a = Conv<pads=[1,1,1,1]>(x, A) b = bn1(a) c = Conv(x, C) d = bn2(c) e = bn3(x) "
           "f = Add(b, d) l = Add(f, e) y = Relu(l)")  # fmt: skip
_REPVGG_HELD = "A:3,3,3,3 bn1:3 C:3,3,1,1 bn2:3 bn3:3"
_HALF = {"v": [1, 1.5, 2, 1], "m": [0.1, 0.2, -0.1, 0], "s": [0.5, 0, -0.5, 1],
         "g": [1, -1, 0.5, 1]}  # fmt: skip

_TYPES = [
    collapse("form: double", _REPVGG, "Conv:1", _REPVGG_HELD, dtype="double", runs="float64"),
    collapse("form: half precision, bn", "c = Conv(x, W, b) y = bn(c)", "Conv:1",
             "W:4,3,1,1 b:4 bn:4", dtype="float16", **_HALF),
    collapse("form: half precision, sum", "a = Conv<pads=[1,1,1,1]>(x, W) b = Conv(x, V) "
             "y = Add(a, b)", "Conv:1", "W:4,3,3,3 V:4,3,1,1", dtype="float16"),
    collapse("form: bfloat16, scale", "c = Conv(x, W, b) y = Mul(c, k)", "Conv:1",
             "W:4,3,1,1 b:4 k:4,1,1", dtype="bfloat16", opset=22,
             runs="float64"),
    collapse("form: statistics in single precision for half", "c = Conv(x, W) y = bn(c)",
             "Conv:1", "W:4,3,1,1 g:4 s:4 m:4:float v:4:float", dtype="float16", **_HALF),
]  # fmt: skip

_OPSETS = [
    collapse(f"form: opset {opset}", _REPVGG, "Conv:1", _REPVGG_HELD, opset=opset)
    for opset in (7, 9, 11, 13, 14, 15, 18, 21, 22)
] + [
    collapse("form: opset 7, dropout by attribute, sum, reshape", "c = Conv(x, W, b) "
             "d = Dropout<ratio=0.3>(c) e = bn(d) f = Add(e, k) y = Reshape(f, sh)", "Conv:1",
             "W:4,3,1,1 b:4 bn:4 k:4,1,1 sh:3:int64", sh=[0, 4, -1], opset=7),
    collapse("form: opset 9, unsqueezed by attribute, gemm of full C", "k = Unsqueeze"
             "<axes=[1,2]>(r) c = Conv(x, W) d = Mul(c, k) p = GlobalAveragePool(d) "
             "f = Flatten(p) y = Gemm<transB=1>(f, V, q)", "Gemm|Conv:1",
             "r:4 W:4,3,1,1 V:5,4 q:5", opset=9),
    collapse("form: opset 9, pads by attribute", "c = Conv(x, U) "
             "e = Pad<pads=[0,0,1,1,0,0,1,1]>(c) y = Conv(e, V)", "Conv:1 Pad:1",
             "U:16,2,1,1 V:2,16,3,3",
             x="float[n,2,h,w] x", opset=9),
    keep("form: opset 9, pads by attribute with a value", "c = Conv(x, U) [it] e = Pad"
         "<pads=[0,0,1,1,0,0,1,1], value=1.0>(c) y = Conv(e, V)", None,
         "U:16,2,1,1 V:2,16,3,3", x="float[n,2,h,w] x", opset=9),
    collapse("form: opset 11, squeeze and mean by attribute", "c = Conv(x, W) "
             "p = ReduceMean<axes=[2,3], keepdims=1>(c) z = Squeeze<axes=[2,3]>(p) d = bn(z) "
             "y = Gemm(d, V, q)", "Gemm|Conv:1", "W:8,3,1,1 bn:8 V:8,4 q:4", opset=11),
    collapse("form: opset 13, dropout of inputs, squeeze of inputs", "p = GlobalMaxPool(x) "
             "c = Conv(p, W) d = Dropout(c, r) z = Squeeze(d, ax) y = bn(z)", "Conv|Gemm:1",
             "W:4,3,1,1 r: ax:2:int64 bn:4", ax=[2, 3], r=0.5, opset=13),
    keep("form: opset 7, bn of every place", "c = Conv(x, W) y = BatchNormalization<spatial=0>"
         "(c, g, s, m, v)", r"spatial|opset|shape|ax[ie]s",
         "W:4,3,1,1 g:4,2,3 s:4,2,3 m:4,2,3 v:4,2,3", opset=7, x="float[n,3,2,3] x",
         runs="nowhere"),
    collapse("form: two epsilons", "c = Conv(x, W) d = bn1(c) "
             "y = BatchNormalization<epsilon=0.5>(d, g2, s2, m2, v2)", "Conv:1",
             "W:4,3,1,1 bn1:4 bn2:4", v1=[1e-6] * 4, opset=9),
]  # fmt: skip

# The shape of r is that of x, but nobody can know before it runs.
_UNKNOWN = "float[n,3,h,w] x, int64[k] sh"
_FEEDS = {"sh": [0, 3, 4, -1], "x": np.linspace(-1, 1, 120).reshape(2, 3, 4, 5)}
_MATRIX = {"sh": [2, -1, 3], "x": np.linspace(-1, 1, 24).reshape(2, 3, 2, 2)}

_RANKS = [
    collapse("form: unknown rank, conv", "r = Reshape(x, sh) c = Conv(r, W) y = bn(c)",
             "Conv:1", "W:4,3,1,1 bn:4", x=_UNKNOWN, y="float[i,j,k0,l0] y", feeds=_FEEDS),
    collapse("form: unknown rank, sum", "r = Reshape(x, sh) a = Conv<pads=[1,1,1,1]>(r, W) "
             "b = Conv(r, V) y = Add(a, b)", "Conv:1", "W:4,3,3,3 V:4,3,1,1", x=_UNKNOWN,
             y="float[i,j,k0,l0] y", feeds=_FEEDS),
    collapse("form: unknown rank, matmuls", "r = Reshape(x, sh) c = MatMul(r, U) "
             "y = MatMul(c, V)", "MatMul:1", "U:3,16 V:16,2", x=_UNKNOWN,
             y="float[i,j,k0] y", feeds=_MATRIX),
    keep("form: unknown rank, a constant on an unknown axis", "r = Reshape(x, sh) "
         "c = MatMul(r, W) y = Mul(c, k)", AXIS, "W:3,4 k:4,1", x="float[n,3,h,w] x, "
         "int64[q] sh", y="float[i,j,k0] y", feeds=_MATRIX),
    keep("form: unknown rank, bn of unknown axis", "r = Reshape(x, sh) "
         "c = MatMul(r, W) y = bn(c)", r"rank|ax[ie]s", "W:3,4 bn:4", x=_UNKNOWN,
         y="float[i,j,k0] y",
         feeds=_MATRIX),
    keep("form: unknown channels, identity", "a = Conv(x, W) y = Add(a, x)", None,
         "W:4,1,1,1", x="float[n,q,h,w] x", feeds={"x": np.ones((2, 1, 4, 5))}),
    keep("form: unknown sizes, two inputs of one name of size", "a = Conv(x, W) "
         "b = Conv(u, W) y = Add(a, b)", None, "W:4,3,1,1",
         x="float[n,3,h,w] x, float[n,3,h,w] u"),
    collapse("form: only the channels are known", "c = Conv(x, W) d = Mul(c, k) y = Add(d, j)",
             "Conv:1", "W:4,3,1,1 k:4,1,1 j:1,4,1,1", x="float[n,3,w,h] x"),
]  # fmt: skip


def _function(model: onnx.ModelProto) -> None:
    """The nodes become the body of a local function that the graph calls."""
    graph = model.graph
    read = sorted({i for n in graph.node for i in n.input}
                  - {o for n in graph.node for o in n.output})  # fmt: skip
    made = helper.make_function("local", "Block", read, ["y"], graph.node, model.opset_import)
    model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("local", 1))
    del graph.node[:]
    graph.node.append(helper.make_node("Block", read, ["y"], domain="local", name="call"))


def _no_bias_named(model: onnx.ModelProto) -> None:
    """A third input of Conv that is there and empty."""
    model.graph.node[0].input.append("")


def _same_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def _awkward_names(model: onnx.ModelProto) -> None:
    """Values that are called as a merged weight might be."""
    taken = {"a": "A.weight", "b": "A.bias", "l": "A.weight_1", "f": "bn/f:0 é"}
    for node in model.graph.node:
        node.input[:] = [taken.get(i, i) for i in node.input]
        node.output[:] = [taken.get(o, o) for o in node.output]


def _weights_as_nodes(model: onnx.ModelProto) -> None:
    """Every initializer is a Constant node."""
    for i, tensor in enumerate(model.graph.initializer):
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(i, node)
    del model.graph.initializer[:]


def _old_ir(model: onnx.ModelProto) -> None:
    """IR 3: every initializer must be an input, and none can be overridden."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        model.graph.input.append(info)


_CONTAINERS = [
    collapse("form: local function", _REPVGG, "Conv:1", _REPVGG_HELD, edit=_function),
    collapse("form: empty optional bias", _REPVGG, "Conv:1", _REPVGG_HELD,
             edit=_no_bias_named),
    collapse("form: nodes of one name", _REPVGG, "Conv:1", _REPVGG_HELD, edit=_same_names,
             runs="float64"),
    collapse("form: names that are taken", _REPVGG, "Conv:1", _REPVGG_HELD,
             edit=_awkward_names),
    collapse("form: weights as Constant nodes", _REPVGG, "Conv:1", _REPVGG_HELD,
             edit=_weights_as_nodes),
    keep("form: weights that are inputs, IR 3", "c = Conv(x, W) r = Relu(c) y = Conv(r, V)",
         None, "W:4,3,1,1 V:2,4,1,1", edit=_old_ir, opset=8),
    keep("form: another domain's convolution", "c = test.Conv(x, W) y = bn(c)", None,
         "W:4,3,1,1 bn:4", foreign="test", y="float[n,4,h,w] y", runs="nowhere"),
    keep("form: another domain's norm and sum", "c = Conv(x, W) d = test.BatchNormalization"
         "(c, g, s, m, v) e = Conv(x, V) y = test.Add(d, e)", None,
         "W:4,3,1,1 V:4,3,1,1 bn:4", foreign="test", y="float[n,4,h,w] y", runs="nowhere"),
    collapse("form: beside another domain's", "c = Conv(x, W) d = bn(c) y = test.Any(d)",
             "Conv:1 Any:1", "W:4,3,1,1 bn:4", foreign="test", y="float[n,4,h,w] y",
             runs="nowhere"),
]  # fmt: skip


def _computed(what: str, before: str, held: str, **weights: object) -> Graph:
    """A bias-free convolution by W, which ``before`` computes from constants; then a bn."""
    return collapse(f"form: weight by {what}", f"{before} c = Conv(x, W) y = bn(c)", "Conv:1",
                    f"{held} bn:4", **weights)  # fmt: skip


_WEIGHTS = [
    _computed("transpose", "W = Transpose<perm=[3,2,0,1]>(K)", "K:3,3,3,4"),
    _computed("product", "W = Mul(K, k)", "K:4,3,1,1 k:4,1,1,1"),
    _computed("identity", "W = Identity(K)", "K:4,3,3,3"),
    _computed("concat", "W = Concat<axis=0>(K, L)", "K:1,3,1,1 L:3,3,1,1"),
    _computed("its norm", "q = ReduceL2<keepdims=1>(K, ax) u = Div(K, q) W = Mul(u, k)",
              "K:4,3,3,3 k:4,1,1,1 ax:3:int64", ax=[1, 2, 3]),
    _computed("its mean and deviation", "q = ReduceMean<keepdims=1>(K, ax) u = Sub(K, q) "
              "p = Mul(u, u) r = ReduceMean<keepdims=1>(p, ax) t = Sqrt(r) W = Div(u, t)",
              "K:4,3,3,3 ax:3:int64", ax=[1, 2, 3]),
    _computed("gather and slice", "u = Gather<axis=0>(K, at) W = Slice(u, st, en, ax)",
              "K:6,5,1,1 at:4:int64 st:1:int64 en:1:int64 ax:1:int64", at=[5, 0, 2, 2],
              st=[1], en=[4], ax=[1]),
    _computed("where and sign", "u = Sign(K) t = Abs(K) z = Greater(K, zero) "
              "W = Where(z, u, t)",
              "K:4,3,1,1 zero:", zero=0),
    _computed("two matrices", "u = MatMul(K, L) W = Reshape(u, sh)",
              "K:4,2 L:2,27 sh:4:int64", sh=[4, 3, 3, 3]),
    _computed("einsum", 'u = Einsum<equation="ok,kihw->oihw">(K, L) W = Neg(u)',
              "K:4,2 L:2,3,3,3"),
    _computed("half precision", "W = Cast<to=1>(K)", "K:4,3,1,1:float16"),
]  # fmt: skip

GRAPHS = (*_TYPES, *_OPSETS, *_RANKS, *_CONTAINERS, *_WEIGHTS)
