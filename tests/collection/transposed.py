"""Transposed convolutions, and padding as a node of its own."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import Graph, collapse, keep
from tests.collection.reasons import BORDER, DATA

_S2 = "<strides=[2,2]>"
_PAD = [0, 0, 1, 1, 0, 0, 1, 1]

_TRANSPOSED = [
    collapse("transposed: bn", f"c = ConvTranspose{_S2}(x, W) y = bn(c)", "ConvTranspose:1",
             "W:3,4,3,3 bn:4"),
    collapse("transposed: bn, groups, bias, cropped", "c = ConvTranspose<strides=[2,1], "
             "group=2, pads=[1,0,0,1], output_padding=[1,0]>(x, W, b) y = bn(c)",
             "ConvTranspose:1", "W:4,3,3,2 b:6 bn:6", x="float[n,4,h,w] x"),
    collapse("transposed: scale and shift", "c = ConvTranspose(x, W) d = Mul(k, c) "
             "y = Add(d, j)", "ConvTranspose:1", "W:3,4,2,2 k:4,1,1 j:"),
    collapse("transposed: depthwise, scale", "c = ConvTranspose<group=3, strides=[2,2]>"
             "(x, W) y = Mul(c, k)", "ConvTranspose:1",
             "W:3,1,2,2 k:3,1,1"),
    collapse("transposed: bn, conv1d", "c = ConvTranspose<strides=[2]>(x, W, b) y = bn(c)",
             "ConvTranspose:1", "W:3,4,4 b:4 bn:4", x="float[n,3,l] x"),
    collapse("transposed: 1x1 behind", f"c = ConvTranspose{_S2}(x, W, p) y = Conv(c, V, q)",
             "ConvTranspose:1", "W:2,16,3,3 p:16 V:2,16,1,1 q:2", x="float[n,2,h,w] x"),
    collapse("transposed: 1x1 before", f"c = Conv(x, U) y = ConvTranspose{_S2}(c, W, q)",
             "ConvTranspose:1", "U:16,2,1,1 W:16,2,3,3 q:2", x="float[n,2,h,w] x"),
    collapse("transposed: 1x1 before and bn behind", "c = Conv(x, U) "
             "d = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(c, W) y = bn(d)",
             "ConvTranspose:1", "U:16,2,1,1 W:16,2,4,4 bn:2", x="float[n,2,h,w] x"),
    keep("transposed: biased 1x1 before", f"c = Conv(x, U, p) y = ConvTranspose{_S2}(c, W)",
         r"pad|border|bias|cover|tap", "U:16,2,1,1 p:16 W:16,2,3,3", x="float[n,2,h,w] x"),
    keep("transposed: padded 1x1 behind", f"c = ConvTranspose{_S2}(x, W) "
         "y = Conv<pads=[1,1,1,1]>(c, V, q)", None, "W:2,16,2,2 V:2,16,1,1 q:2",
         x="float[n,2,h,w] x"),
    keep("transposed: relu between", f"c = ConvTranspose{_S2}(x, W) r = Relu(c) "
         "y = Conv(r, V)", None, "W:2,16,2,2 V:2,16,1,1", x="float[n,2,h,w] x"),
    keep("transposed: weight from data", "c = ConvTranspose(x, u) y = Mul(c, k)", DATA,
         "k:4,1,1", x="float[n,3,h,w] x, float[3,4,2,2] u"),
]  # fmt: skip


def _padded(
    what: str,
    pad: str,
    held: str,
    nodes: str | None,
    reason: str | None = None,
    **kwargs: object,
) -> Graph:
    """A wide 1x1, padding, and a 3x3 to few channels."""
    bias = ", p" if "p:" in held else ""
    body = f"c = Conv(x, U{bias}) {pad} y = Conv(e, V)"
    given = {"pd": _PAD, "x": "float[n,2,h,w] x"} | kwargs
    held = f"U:16,2,1,1 V:2,16,3,3 {held}"
    if nodes is None:
        return keep(f"pad: {what}", body, reason, held, **given)
    return collapse(f"pad: {what}", body, nodes, held, **given)


_PADS = [
    _padded("zeros, no bias", "e = Pad(c, pd)", "pd:8:int64", "Conv:1 Pad:1"),
    _padded("zeros given as a constant, no bias", "e = Pad(c, pd, v)", "pd:8:int64 v:",
            "Conv:1 Pad:1", v=0),
    _padded("edge, bias", 'e = Pad<mode="edge">(c, pd)', "p:16 pd:8:int64", "Conv:1 Pad:1"),
    _padded("reflect, bias", 'e = Pad<mode="reflect">(c, pd)', "p:16 pd:8:int64",
            "Conv:1 Pad:1"),
    _padded("of nothing, bias", "e = Pad(c, pd)", "p:16 pd:8:int64", "Conv:1 Pad:0",
            pd=[0] * 8),
    _padded("zeros, bias", "e = Pad(c, pd)", "p:16 pd:8:int64", "Conv:2"),
    _padded("a constant, no bias", "[it] e = Pad(c, pd, v)", "pd:8:int64 v:", None,
            BORDER, v=0.5),
    _padded("zeros of axes", "e = Pad(c, pd, , ax)", "pd:4:int64 ax:2:int64", "Conv:1 Pad:1",
            pd=[1, 1, 1, 1], ax=[2, 3]),
    keep("pad: zeros, then bn", "c = Conv(x, W, b) [it] p = Pad(c, pd) [it2] y = bn(p)",
         BORDER, "W:4,3,1,1 b:4 pd:8:int64 bn:4", pd=_PAD),
    collapse("pad: zeros, then scale", "c = Conv(x, W, b) p = Pad(c, pd) y = Mul(p, k)",
             "Conv:1 Pad:1", "W:4,3,1,1 b:4 pd:8:int64 k:4,1,1", pd=_PAD),
    collapse("pad: reflect, then bn", 'c = Conv(x, W, b) p = Pad<mode="reflect">(c, pd) '
             "y = bn(p)", "Conv:1 Pad:1", "W:4,3,1,1 b:4 pd:8:int64 bn:4", pd=_PAD),
    keep("pad: of channels, then bn", "c = Conv(x, W, b) [it] p = Pad(c, pd) [it2] y = bn(p)",
         None, "W:4,3,1,1 b:4 pd:8:int64 bn:6", pd=[0, 1, 0, 0, 0, 1, 0, 0]),
    keep("pad: beside a padded branch by reflection", 'p = Pad<mode="reflect">(x, pd) '
         "[it] a = Conv(p, W) [it2] b = Conv<pads=[1,1,1,1]>(x, V) y = Add(a, b)", None,
         "W:4,3,3,3 V:4,3,3,3 pd:8:int64", pd=_PAD),
    collapse("pad: crops, then bn", "c = Conv(x, W, b) p = Pad(c, pd) y = bn(p)",
             "Conv:1 Pad:1 BatchNormalization:1", "W:4,3,1,1 b:4 pd:8:int64 bn:4",
             pd=[0, 0, -1, 0, 0, 0, 0, -1]),
]  # fmt: skip

GRAPHS = (*_TRANSPOSED, *_PADS)
