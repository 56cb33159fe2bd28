"""Large graphs run in parts, which give what the whole gives; streams and their faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graphs import feeds_of, graph
from vntools.base.errors import InternalFault
from vntools.verify import float32
from vntools.verify.float32 import run_float32, stream_float32

GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 3] x, bool c) => (float[N, 3] y, float[N, 3] early, float[N, 3] x, float[1] w)
<float[1] w = {2.0}>
{
    a = Add(x, w)
    early = Relu(a)
    b = Mul(a, w)
    parts = SplitToSequence<axis = 1>(b)
    d = If (c) <
        then_branch = t () => (float[N, 3] then) { then = Add(a, early) },
        else_branch = e () => (float[N, 3] other) { other = Identity(b) }
    >
    joined = ConcatFromSequence<axis = 1>(parts)
    y = Sub(d, joined)
}
"""


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(GRAPH))
    model = ir.serde.deserialize_model(proto)
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((2, 3)).astype(np.float32), "c": np.array(c)}
        for c in (True, False)
    ]
    whole = run_float32(model, feeds)
    monkeypatch.setattr(float32, "_LARGEST_PART", size)
    for given in (model, proto.SerializeToString()):
        for want, got in zip(whole, run_float32(given, feeds), strict=True):
            assert list(got) == ["y", "early", "x", "w"]
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])


def test_a_fault_of_the_feeds_is_not_onnx_runtimes() -> None:
    model = graph("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }")

    def feeds() -> Iterator[dict[str, Any]]:
        yield feeds_of(model)
        raise ZeroDivisionError

    outputs = stream_float32(model, feeds())
    assert next(outputs)["y"].shape == (2, 3)
    with pytest.raises(ZeroDivisionError):
        next(outputs)
    with pytest.raises(InternalFault, match="ONNX Runtime failed") as e:
        next(stream_float32(model, [{"x": np.zeros(3, np.float32)}]))
    assert e.value.code == "verify.run"
