"""Small random graphs: linear operators, their borders, and constants in every spelling."""

from __future__ import annotations

__all__ = ["Drawn", "draw"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.collection.base import Array, Feeds

_OPSETS = (11, 13, 17, 20, 22)
_DIMS = (1, 1, 2, 3, 4, 5, 7)
Sizes = tuple[tuple[int, ...], tuple[int, ...]]


class _Unfit(Exception):
    """A node that does not fit what it was drawn for."""


@dataclass(frozen=True)
class Drawn:
    """A random graph in one type, and what it is fed with, at two sizes."""

    model: onnx.ModelProto
    feeds: tuple[Feeds, ...]


def draw(seed: int, kind: str) -> Drawn:
    """The graph of a seed; ``kind`` is "double" or "float", all else stays the same."""
    return _Draw(seed, kind).made()


class _Draw:
    """One graph while it is drawn: every value with its shape at two sizes."""

    def __init__(self, seed: int, kind: str) -> None:
        self.rng = np.random.default_rng(seed)
        self.type = {"double": TensorProto.DOUBLE, "float": TensorProto.FLOAT}[kind]
        self.dtype = helper.tensor_dtype_to_np_dtype(self.type)
        self.opset = self.one(_OPSETS)
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, onnx.TensorProto] = {}
        self.shared: dict[tuple[int, ...], list[str]] = {}
        self.sizes: dict[str, Sizes] = {}
        self.dims: dict[str, list[int | str]] = {}
        self.count = 0

    # Dice.

    def one(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def numbers(self, shape: Sequence[int], *, positive: bool = False) -> Array:
        what = self.rng.random()
        drawn = self.rng.integers(-4, 5, tuple(shape)) / 4
        if positive:
            return np.abs(drawn) + 0.5
        if what < 0.1:
            return np.zeros(tuple(shape))
        if what < 0.22:
            return np.ones(tuple(shape))
        if what < 0.3:
            return -np.ones(tuple(shape))
        return np.abs(drawn) if what < 0.45 else drawn

    # Parts of a graph.

    def constant(self, array: Array, *, kind: str = "float") -> str:
        """A constant in one of its spellings."""
        array = np.asarray(array, self.dtype if kind == "float" else np.int64)
        like = self.shared.setdefault((kind == "float", *array.shape), [])
        if kind == "float" and like and self.chance(0.1):
            return self.one(like)
        how = self.rng.random()
        name = self.name("k")
        if how < 0.6:
            self.held[name] = numpy_helper.from_array(array, name)
        elif how < 0.8 or kind != "float":
            tensor = numpy_helper.from_array(array, "")
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self._computed(name, array)
        like.append(name)
        return name

    def _computed(self, name: str, array: Array) -> None:
        inner = self.name("k")
        if self.chance(0.3):
            self.held[inner] = numpy_helper.from_array(array, inner)
            self.nodes.append(helper.make_node("Identity", [inner], [name]))
        elif self.chance(0.5):
            self.held[inner] = numpy_helper.from_array(array.reshape(-1), inner)
            shape = self.constant(np.array(array.shape, np.int64), kind="int")
            self.nodes.append(helper.make_node("Reshape", [inner, shape], [name]))
        else:
            self.held[inner] = numpy_helper.from_array(array * 2, inner)
            two = self.constant(np.array(0.5))
            if array.ndim and self._value_of(two) != 0.5:
                raise _Unfit
            self.nodes.append(helper.make_node("Mul", [inner, two], [name]))

    def _value_of(self, name: str) -> float | None:
        if name in self.held:
            return float(numpy_helper.to_array(self.held[name]).reshape(-1)[0])
        made = next(n for n in self.nodes if name in n.output)
        if made.op_type != "Constant":
            return None
        return float(numpy_helper.to_array(made.attribute[0].t).reshape(-1)[0])

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64), kind="int")

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        outputs: int = 1,
        fixed: dict[str, tuple[Array, Array]] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """A node, if shape inference takes it at both sizes."""
        names = [self.name("v") for _ in range(outputs)]
        node = helper.make_node(op, inputs, names, name=self.name("node"), **attributes)
        found = [self._inferred(node, turn, fixed or {}) for turn in (0, 1)]
        for i, name in enumerate(names):
            self.sizes[name] = (found[0][i], found[1][i])
        self.nodes.append(node)
        return names

    def _inferred(
        self, node: onnx.NodeProto, turn: int, fixed: dict[str, tuple[Array, Array]]
    ) -> list[tuple[int, ...]]:
        known = [n for n in dict.fromkeys(node.input) if n in self.sizes and n not in fixed]
        inputs = [
            helper.make_tensor_value_info(n, self.type, self.sizes[n][turn]) for n in known
        ]
        outputs = [helper.make_empty_tensor_value_info(n) for n in node.output]
        given = [numpy_helper.from_array(a[turn], n) for n, a in fixed.items()]
        before = [n for n in self.nodes if not self.sizes.keys() & {*n.output, *n.input}]
        graph = helper.make_graph(
            [*before, node], "g", inputs, outputs, [*self.held.values(), *given]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            inferred = onnx.shape_inference.infer_shapes(
                model, strict_mode=True, data_prop=True
            )
        except onnx.shape_inference.InferenceError as e:
            raise _Unfit from e
        shapes = []
        for output in inferred.graph.output:
            kind = output.type.tensor_type
            dims = tuple(d.dim_value for d in kind.shape.dim)
            bad = not kind.HasField("shape") or any(not 0 < d < 40 for d in dims)
            if bad or math.prod(dims) > 4000:
                raise _Unfit
            shapes.append(dims)
        return shapes

    # The whole.

    def made(self) -> Drawn:
        self._inputs()
        wanted = int(self.rng.integers(3, 15))
        while len([n for n in self.nodes if n.op_type != "Constant"]) < wanted:
            state = len(self.nodes), dict(self.held), self.count, dict(self.sizes)
            lists = {k: list(v) for k, v in self.shared.items()}
            try:
                self._step()
            except _Unfit:
                del self.nodes[state[0] :]
                self.held, self.count, self.sizes = state[1], state[2] + 100, state[3]
                self.shared = lists
        graph = helper.make_graph(
            self.nodes, "random", self._declared_inputs(), [], list(self.held.values())
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = 7 if self.opset < 20 else 10
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        self._outputs(model)
        return Drawn(model, (self._feeds(0), self._feeds(1)))

    def _inputs(self) -> None:
        axes = self.one((0, 1, 1, 2, 2, 2, 3))
        for i in range(2 if self.chance(0.15) else 1):
            name = f"x{i}"
            if i and self.chance(0.6):
                self.dims[name], self.sizes[name] = self.dims["x0"], self.sizes["x0"]
                continue
            dims: list[int | str] = [self.one((1, 2, "n"))]
            if axes == 0:
                dims += [] if self.chance(0.3) else [self.one((1, 3, "s"))]
                dims += [self.one((1, 2, 4, 6))]
            else:
                dims += [self.one((1, 2, 3, 4, 6))]
                dynamic = self.chance(0.5)
                dims += [f"d{a}" if dynamic else self.one(_DIMS) for a in range(axes)]
            self.dims[name] = dims
            sizes = []
            for turn in (0, 1):
                at = {"n": (2, 3), "s": (3, 5), "d0": (3, 5), "d1": (4, 7), "d2": (2, 3)}
                sizes.append(tuple(d if isinstance(d, int) else at[d][turn] for d in dims))
            self.sizes[name] = (sizes[0], sizes[1])

    def _declared_inputs(self) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, self.type, d) for n, d in self.dims.items()]

    def _outputs(self, model: onnx.ModelProto) -> None:
        """What nothing reads, and some of the rest, with shapes as they are inferred."""
        read = {n for node in self.nodes for n in node.input}
        made = [n for node in self.nodes for n in node.output if n in self.sizes]
        names = [n for n in made if n not in read]
        names += [n for n in made if n in read and self.chance(0.06)]
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        known = {v.name: v for v in inferred.graph.value_info}
        for name in dict.fromkeys(names):
            kind = known[name].type.tensor_type if name in known else None
            dims: list[int | str] = [f"{name}_{i}" for i in range(len(self.sizes[name][0]))]
            if kind is not None and kind.HasField("shape"):
                for i, d in enumerate(kind.shape.dim):
                    dims[i] = d.dim_value or d.dim_param or dims[i]
            model.graph.output.append(helper.make_tensor_value_info(name, self.type, dims))

    def _feeds(self, turn: int) -> Feeds:
        rng = np.random.default_rng(turn)
        return {
            n: (rng.integers(-8, 9, self.sizes[n][turn]) / 4).astype(self.dtype)
            for n in self.dims
        }

    def _step(self) -> None:
        names = list(self.sizes)
        near = names[-3:]
        x = names[-1] if self.chance(0.55) else self.one(near if self.chance(0.6) else names)
        rank = len(self.sizes[x][0])
        if not rank:
            raise _Unfit
        table = _STEPS[min(rank, 3)]
        weights = np.array([w for w, _ in table], float)
        at = int(self.rng.choice(len(table), p=weights / weights.sum()))
        table[at][1](self, x)

    # Operators.

    def shape(self, x: str) -> tuple[int, ...]:
        return self.sizes[x][0]

    def static(self, x: str, axis: int) -> bool:
        return self.sizes[x][0][axis] == self.sizes[x][1][axis]

    def mate(self, x: str) -> str:
        """Another value of the same shape, or the same one."""
        fit = [n for n, s in self.sizes.items() if s == self.sizes[x]]
        return self.one(fit[-4:])

    def channels(self, x: str) -> None:
        if not self.static(x, 1):
            raise _Unfit

    def covered(self, x: str, kernel: list[int], given: dict[str, Any]) -> None:
        """Refuse windows larger than the padded map: each library has its own of them."""
        axes = len(kernel)
        dilations, pads = given.get("dilations", [1] * axes), given.get("pads", [0] * 2 * axes)
        for size in self.sizes[x]:
            for a, n in enumerate(size[2:]):
                if n + pads[a] + pads[a + axes] <= dilations[a] * (kernel[a] - 1):
                    raise _Unfit

    def conv(self, x: str) -> None:
        self.channels(x)
        c, axes = self.shape(x)[1], len(self.shape(x)) - 2
        keep = self.chance(0.5)
        groups = self.one([g for g in (1, 1, 2, 3, c) if c % g == 0])
        out = c if keep or self.chance(0.3) else groups * self.one((1, 2))
        if out % groups:
            raise _Unfit
        kernel = [self.one((1, 1, 2, 3)) for _ in range(axes)]
        if self.chance(0.35):
            kernel = [1] * axes
        dilations = [self.one((1, 1, 1, 2)) for _ in range(axes)]
        strides = [1 if keep else self.one((1, 1, 2)) for _ in range(axes)]
        pads = [self.one((0, 0, 1, 2)) for _ in range(2 * axes)]
        if keep:
            reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            begin = [r // 2 for r in reach]
            pads = begin + [r - b for r, b in zip(reach, begin, strict=True)]
        given: dict[str, Any] = {"pads": pads, "strides": strides, "dilations": dilations}
        if self.chance(0.1):
            del given["pads"]
            given["auto_pad"] = self.one(("SAME_UPPER", "SAME_LOWER", "VALID"))
            if self.chance(0.7):
                del given["dilations"]
        if self.chance(0.3):
            given["kernel_shape"] = kernel
        self.covered(x, kernel, given)
        if groups != 1 or self.chance(0.3):
            given["group"] = groups
        inputs = [x, self.constant(self.numbers([out, c // groups, *kernel]))]
        if self.chance(0.5):
            inputs.append(self.constant(self.numbers([out])))
        self.node("Conv", inputs, **given)

    def conv_transpose(self, x: str) -> None:
        self.channels(x)
        c, axes = self.shape(x)[1], len(self.shape(x)) - 2
        groups = self.one([g for g in (1, 1, 2, c) if c % g == 0])
        out = self.one((1, 2))
        kernel = [self.one((1, 2, 3)) for _ in range(axes)]
        if self.chance(0.2):
            kernel = [1] * axes
        strides = [self.one((1, 2)) for _ in range(axes)]
        given: dict[str, Any] = {
            "group": groups,
            "strides": strides,
            "pads": [self.one((0, 0, 1)) for _ in range(2 * axes)],
        }
        if self.chance(0.3):
            given["output_padding"] = [int(s > 1) for s in strides]
        if self.chance(0.2):
            given["dilations"] = [self.one((1, 2)) for _ in range(axes)]
        if self.chance(0.1):
            del given["pads"]
            given["auto_pad"] = "SAME_UPPER"
        inputs = [x, self.constant(self.numbers([c, out, *kernel]))]
        if self.chance(0.5):
            inputs.append(self.constant(self.numbers([out * groups])))
        self.node("ConvTranspose", inputs, **given)

    def norm(self, x: str) -> None:
        self.channels(x)
        c = self.shape(x)[1]
        held = [self.constant(self.numbers([c])) for _ in range(3)]
        name = self.name("var")
        array = self.numbers([c], positive=True).astype(self.dtype)
        self.held[name] = numpy_helper.from_array(array, name)
        self.node("BatchNormalization", [x, *held, name])

    def affine(self, x: str) -> None:
        """Arithmetic with a constant, on whatever axes."""
        shape = self.shape(x)
        how = self.rng.random()
        ones = [1] * len(shape)
        axis = 1 if len(shape) > 2 and self.chance(0.7) else int(self.rng.integers(len(shape)))
        if how < 0.2:
            dims = []
        elif how < 0.3:
            dims = [1] * int(self.rng.integers(1, len(shape) + 2))
        elif how < 0.8:
            ones[axis] = shape[axis]
            dims = ones[axis:] if self.chance(0.5) else ones
        else:
            dims = [n if self.chance(0.6) else 1 for n in shape]
            dims = dims[int(self.rng.integers(len(dims))) :]
        op = self.one(("Add", "Add", "Mul", "Mul", "Sub", "Div"))
        array = self.numbers(dims, positive=op == "Div")
        names = [x, self.constant(array)]
        if op == "Div" and names[1] != next(reversed(self.held), None):
            raise _Unfit  # a shared one may be zero
        if op != "Div" and self.chance(0.4):
            names.reverse()
        self.node(op, names)

    def plus(self, x: str) -> None:
        """Arithmetic of data and data."""
        y = self.mate(x) if self.chance(0.85) else self.one(list(self.sizes))
        op = self.one(("Add", "Add", "Add", "Sub", "Sub", "Mul"))
        names = [x, y] if self.chance(0.5) else [y, x]
        self.node(op, names)

    def many(self, x: str) -> None:
        names = [x] + [self.mate(x) for _ in range(int(self.rng.integers(0, 4)))]
        if self.chance(0.4):
            names.append(self.constant(self.numbers([1] * int(self.rng.integers(0, 3)))))
        self.rng.shuffle(names)
        self.node(self.one(("Sum", "Sum", "Mean", "Max")), names)

    def unary(self, x: str) -> None:
        op = self.one(("Relu", "Relu", "Sigmoid", "Neg", "Identity", "Abs", "Tanh"))
        self.node(op, [x])

    def nothing(self, x: str) -> None:
        how = self.one(("dropout", "cast", "leaky", "prelu", "softmax", "clip"))
        if how == "dropout":
            inputs = [x]
            if self.opset >= 12 and self.chance(0.5):
                inputs.append(self.constant(np.array(0.5)))
            self.node("Dropout", inputs)
        elif how == "cast":
            self.node("Cast", [x], to=self.type)
        elif how == "leaky":
            self.node("LeakyRelu", [x], alpha=self.one((1.0, 1.0, 0.5)))
        elif how == "prelu":
            c = self.shape(x)[1] if len(self.shape(x)) > 1 else 1
            dims = self.one(([], [1], [c] + [1] * (len(self.shape(x)) - 2)))
            self.node("PRelu", [x, self.constant(self.numbers(dims))])
        elif how == "softmax":
            self.node("Softmax", [x], axis=self.one((-1, 1)))
        else:
            self.node("Clip", [x, "", self.constant(np.array(1.0))])

    def pool(self, x: str) -> None:
        axes = len(self.shape(x)) - 2
        op = self.one(("AveragePool", "AveragePool", "MaxPool"))
        kernel = [self.one((1, 2, 3)) for _ in range(axes)]
        given: dict[str, Any] = {"kernel_shape": kernel}
        if self.chance(0.6):
            given["strides"] = [self.one((1, 2)) for _ in range(axes)]
        if self.chance(0.5):
            given["pads"] = [self.one((0, int(k > 1))) for k in kernel * 2]
        elif self.chance(0.2):
            given["auto_pad"] = self.one(("SAME_UPPER", "VALID"))
        if op == "AveragePool" and self.chance(0.6):
            given["count_include_pad"] = 1
        if self.chance(0.15):
            given["ceil_mode"] = 1
        if self.chance(0.15) and (op == "MaxPool" or self.opset >= 19):
            given["dilations"] = [self.one((1, 2)) for _ in range(axes)]
        self.covered(x, kernel, given)
        self.node(op, [x], **given)

    def whole(self, x: str) -> None:
        self.node(self.one(("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool")), [x])

    def mean(self, x: str) -> None:
        rank = len(self.shape(x))
        axes = [a for a in range(rank) if self.chance(0.5)] or [rank - 1]
        if self.chance(0.4) and rank > 2:
            axes = [*range(2, rank)]
        axes = [a - rank if self.chance(0.3) else a for a in axes]
        op = self.one(("ReduceMean", "ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax"))
        given: dict[str, Any] = {"keepdims": self.one((0, 1))}
        if self.opset >= {"ReduceSum": 13}.get(op, 18):
            self.node(op, [x, self.ints(*axes)], **given)
        else:
            self.node(op, [x], axes=axes, **given)

    def pad(self, x: str) -> None:
        rank = len(self.shape(x))
        pads = [self.one((0, 0, 1, 2)) if a % rank > 1 else 0 for a in range(2 * rank)]
        if self.chance(0.1):
            pads[int(self.rng.integers(2 * rank))] = self.one((-1, 1))
        mode = self.one(("constant", "constant", "reflect", "edge"))
        inputs = [x]
        if self.opset >= 18 and self.chance(0.3):
            on = [*range(2, rank)]
            ends = [pads[a] for a in on] + [pads[a + rank] for a in on]
            signed = [a - rank if self.chance(0.5) else a for a in on]
            inputs += [self.ints(*ends), "", self.ints(*signed)]
        else:
            inputs.append(self.ints(*pads))
            if self.chance(0.4):
                inputs.append(self.constant(self.numbers([])))
        for a in range(rank):
            if mode == "reflect" and max(pads[a], pads[a + rank]) >= min(
                self.sizes[x][t][a] for t in (0, 1)
            ):
                raise _Unfit
        self.node("Pad", inputs, mode=mode)

    def concat(self, x: str) -> None:
        rank = len(self.shape(x))
        axis = 1 if rank > 1 and self.chance(0.7) else int(self.rng.integers(rank))
        names = [x, self.mate(x)]
        if self.chance(0.3):
            names.append(self.one(list(self.sizes)))
        if self.chance(0.1):
            names.append(self.constant(self.numbers(self.shape(x))))
        self.rng.shuffle(names)
        self.node("Concat", names, axis=axis - rank if self.chance(0.3) else axis)

    def split(self, x: str) -> None:
        rank = len(self.shape(x))
        axis = 1 if rank > 1 else 0
        if not self.static(x, axis) or self.shape(x)[axis] < 2:
            raise _Unfit
        first = int(self.rng.integers(1, self.shape(x)[axis]))
        sizes = [first, self.shape(x)[axis] - first]
        if self.opset >= 13:
            self.node("Split", [x, self.ints(*sizes)], outputs=2, axis=axis)
        else:
            self.node("Split", [x], outputs=2, axis=axis, split=sizes)

    def cut(self, x: str) -> None:
        axis = int(self.rng.integers(len(self.shape(x))))
        if self.chance(0.5):
            begin, end, step = self.one(((0, -1, 1), (1, 100, 1), (0, 100, 2), (-1, -100, -1)))
            self.node("Slice", [x, *(self.ints(i) for i in (begin, end, axis, step))])
        else:
            picked = self.one(([0], [0, 0], [-1, 0]))
            self.node("Gather", [x, self.ints(*picked)], axis=axis)

    def resize(self, x: str) -> None:
        rank = len(self.shape(x))
        name = self.name("scales")
        scales = np.array([1, 1, *[2] * (rank - 2)], np.float32)
        self.held[name] = numpy_helper.from_array(scales, name)
        self.node(
            "Resize",
            [x, "" if self.opset > 11 else self.constant(np.ones(0)), name],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def transpose(self, x: str) -> None:
        perm = [int(a) for a in self.rng.permutation(len(self.shape(x)))]
        if self.chance(0.1):
            self.node("Transpose", [x])
        else:
            self.node("Transpose", [x], perm=perm)

    def reshape(self, x: str) -> None:
        shape, rank = self.shape(x), len(self.shape(x))
        how = self.rng.random()
        if how < 0.25:
            self.node("Flatten", [x], axis=self.one((0, 1, 1, 2, -1)))
        elif how < 0.4:
            axis = int(self.rng.integers(rank + 1))
            self._axes("Unsqueeze", x, axis)
        elif how < 0.55:
            places = [a for a in range(rank) if shape[a] == 1 and self.static(x, a)]
            if not places:
                raise _Unfit
            self._axes("Squeeze", x, self.one(places))
        elif how < 0.8:
            target = self._target(shape, x)
            self.node("Reshape", [x, self.ints(*target)])
        else:
            self._computed_shape(x)

    def _target(self, shape: tuple[int, ...], x: str) -> list[int]:
        rank, how = len(shape), self.rng.random()
        rest = [shape[a] if self.static(x, a) else -1 for a in range(rank)]
        if how < 0.4:
            return [0, -1] if rank > 1 else [-1, 1]
        if how < 0.6:
            return [0, 0, -1] if rank > 2 else [0, -1, 1]
        if how < 0.8 and rank > 1 and shape[1] % 2 == 0:
            return [0, 2, shape[1] // 2, *rest[2:]]
        return [*rest[:1], *rest[2:], *rest[1:2]] if rank > 2 else [*rest, 1]

    def _axes(self, op: str, x: str, axis: int) -> None:
        if self.opset >= 13:
            self.node(op, [x, self.ints(axis)])
        else:
            self.node(op, [x], axes=[axis])

    def _computed_shape(self, x: str) -> None:
        """Reshape to [Shape(x)[0], ..], as exporters write it."""
        rank = len(self.shape(x))
        if rank < 2:
            raise _Unfit
        names = [self.name("s") for _ in range(4)]
        zero = self.ints(0) if self.chance(0.5) else None
        made = [helper.make_node("Shape", [x], [names[0]], name=self.name("node"))]
        at = zero or self.constant(np.array(0, np.int64), kind="int")
        made.append(helper.make_node("Gather", [names[0], at], [names[1]]))
        first = names[1]
        if zero is None:
            made.append(self._unsqueezed(first, names[2]))
            first = names[2]
        rest = [-1] if self.chance(0.5) else [self.shape(x)[1] if self.static(x, 1) else -1]
        if rest != [-1] and self.chance(0.7):
            rest.append(-1)
        tail = self.ints(*rest)
        made.append(helper.make_node("Concat", [first, tail], [names[3]], axis=0))
        self.nodes += made
        both = [np.array([self.sizes[x][t][0], *rest], np.int64) for t in (0, 1)]
        self.node("Reshape", [x, names[3]], fixed={names[3]: (both[0], both[1])})

    def _unsqueezed(self, source: str, target: str) -> onnx.NodeProto:
        if self.opset >= 13:
            return helper.make_node("Unsqueeze", [source, self.ints(0)], [target])
        return helper.make_node("Unsqueeze", [source], [target], axes=[0])

    def gemm(self, x: str) -> None:
        n, c = self.shape(x)
        out = self.one((1, 2, 3, c))
        given: dict[str, Any] = {"transB": self.one((0, 1))}
        inside = c
        if self.chance(0.15):
            given["transA"], inside = 1, n
        if not self.static(x, 0 if "transA" in given else 1):
            raise _Unfit
        if self.chance(0.3):
            given |= {"alpha": self.one((0.5, 2.0, 0.0)), "beta": self.one((0.5, 0.0))}
        shape = [out, inside] if given["transB"] else [inside, out]
        inputs = [x, self.constant(self.numbers(shape))]
        if self.chance(0.7):
            rows = c if "transA" in given else n
            options = ([out], [1, out], [1], [], [rows, 1], [rows, out])
            inputs.append(self.constant(self.numbers(self.one(options))))
        self.node("Gemm", inputs, **given)

    def matmul(self, x: str) -> None:
        shape = list(self.shape(x))
        how = self.rng.random()
        out = self.one((1, 2, shape[-1]))
        if how < 0.65:
            self.node("MatMul", [x, self.constant(self.numbers([shape[-1], out]))])
        elif how < 0.8 and len(shape) > 1 and self.static(x, -2):
            self.node("MatMul", [self.constant(self.numbers([out, shape[-2]])), x])
        elif how < 0.88:
            self.node("MatMul", [x, self.constant(self.numbers([shape[-1]]))])
        elif how < 0.94:
            self.node("MatMul", [x, self.constant(self.numbers([1, shape[-1], out]))])
        else:
            self.node("MatMul", [x, self.one(list(self.sizes))])


_Step = tuple[float, Callable[[_Draw, str], None]]
_ANY: tuple[_Step, ...] = (
    (4, _Draw.affine),
    (4, _Draw.plus),
    (1, _Draw.many),
    (2, _Draw.unary),
    (1, _Draw.nothing),
    (1, _Draw.concat),
    (0.5, _Draw.cut),
    (0.7, _Draw.reshape),
    (0.5, _Draw.mean),
)
_MATRIX: tuple[_Step, ...] = (
    *_ANY,
    (3, _Draw.matmul),
    (1, _Draw.norm),
    (0.6, _Draw.transpose),
    (0.5, _Draw.split),
)
_MAP: tuple[_Step, ...] = (
    *_ANY,
    (9, _Draw.conv),
    (1.5, _Draw.conv_transpose),
    (3, _Draw.norm),
    (1.5, _Draw.pool),
    (0.6, _Draw.whole),
    (1, _Draw.pad),
    (0.5, _Draw.resize),
    (0.7, _Draw.matmul),
    (0.6, _Draw.transpose),
    (0.5, _Draw.split),
)
_STEPS: tuple[tuple[_Step, ...], ...] = (
    _ANY,
    (*_ANY, (2, _Draw.matmul)),
    (*_MATRIX, (4, _Draw.gemm)),
    _MAP,
)
