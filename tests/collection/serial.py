"""A convolution behind a convolution."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import Graph, collapse, dear, keep
from tests.collection.reasons import BORDER, COST


def _pair(
    what: str,
    inner: str,
    outer: str,
    held: str,
    *,
    verdict: str = "Conv:1",
    reason: str | None = None,
    x: str = "float[n,2,h,w] x",
    **kwargs: object,
) -> Graph:
    """Two convolutions with their attributes; biased where ``held`` has p and q."""
    biases = [f", {b}" if f"{b}:" in held else "" for b in "pq"]
    body = f"c = Conv{inner}(x, U{biases[0]}) y = Conv{outer}(c, V{biases[1]})"
    if verdict == "keep":
        return keep(f"serial: {what}", body, reason, held, x=x, **kwargs)
    if verdict == "dear":
        return dear(f"serial: {what}", body, reason, held, x=x, **kwargs)
    return collapse(f"serial: {what}", body, verdict, held, x=x, **kwargs)


# A wide middle between few channels: the product is always cheaper.
_ONE = "U:16,2,1,1 p:16 V:3,16,1,1 q:3"
_POINT_FIRST = "U:16,2,1,1 V:2,16,3,3 q:2"
_POINT_FIRST_BIASED = "U:16,2,1,1 p:16 V:2,16,3,3"
_POINT_LAST = "U:16,2,3,3 p:16 V:2,16,1,1 q:2"
_THREES = "U:16,1,3,3 V:1,16,3,3"
_ONE_CHANNEL = "float[n,1,h,w] x"
_P1 = "<pads=[1,1,1,1]>"

_EXACT = [
    _pair("1x1, 1x1", "", "", _ONE),
    _pair("1x1 of stride 2, 1x1", "<strides=[2,2]>", "", _ONE),
    _pair("1x1, 1x1 of stride 2", "", "<strides=[2,1]>", _ONE),
    _pair("1x1 of stride 2, 1x1 of stride 3", "<strides=[2,2]>", "<strides=[3,3]>", _ONE),
    _pair("padded 1x1, 1x1", _P1, "", _ONE),
    _pair("3x3, 1x1", "", "", _POINT_LAST),
    _pair("3x3 of stride 2, dilation 2, odd pads, 1x1",
          "<strides=[2,1], dilations=[1,2], pads=[0,1,2,3]>", "", _POINT_LAST),
    _pair("3x3 padded, 1x1 of stride 2", _P1, "<strides=[2,2]>", _POINT_LAST),
    _pair("1x1, 3x3 without padding", "", "", _POINT_FIRST_BIASED),
    _pair("1x1, padded 3x3", "", _P1, _POINT_FIRST),
    _pair("1x1 of a bias of zeros, padded 3x3", "", _P1, _POINT_FIRST_BIASED, p=[0] * 16),
    _pair("1x1, 3x3 of dilation 2", "", "<dilations=[2,2], pads=[2,2,2,2]>", _POINT_FIRST),
    _pair("1x1, 3x3 of odd pads", "", "<pads=[1,0,2,3]>", _POINT_FIRST),
    _pair("1x1 of stride 2, padded 3x3", "<strides=[2,2]>", _P1, _POINT_FIRST),
    _pair("1x1 of stride 2, padded 3x3 of stride 2", "<strides=[2,2]>",
          "<strides=[2,2], pads=[1,1,1,1]>", _POINT_FIRST),
    _pair("padded 1x1 carries its bias to the border, 3x3", _P1, "", _POINT_FIRST_BIASED),
    _pair("3x3, 3x3", "", "", _THREES, x="float[n,1,6,7] x"),
    _pair("biased 3x3, 3x3 without padding", _P1, "", _THREES + " p:16", x=_ONE_CHANNEL),
    _pair("3x3 padded beyond its reach, padded 3x3", "<pads=[2,2,2,2]>", _P1, _THREES,
          x=_ONE_CHANNEL),
    _pair("3x3 of stride 2, 3x3", "<strides=[2,2]>", "", _THREES + " p:16",
          x="float[n,1,9,8] x"),
    _pair("3x3 of dilation 2, 3x3 of dilation 2", "<dilations=[2,2]>", "<dilations=[2,2]>",
          _THREES, x="float[n,1,9,10] x"),
    _pair("3x1, 1x3, each padded along its own axis", "<pads=[1,0,1,0]>", "<pads=[0,1,0,1]>",
          "U:16,2,3,1 V:2,16,1,3 q:2"),
    _pair("biased along the axis without padding", "", "<pads=[0,0,0,0]>",
          "U:16,2,1,3 p:16 V:2,16,3,1"),
    _pair("1x1, 1x1, both grouped", "<group=2>", "<group=2>", "U:16,2,1,1 p:16 V:4,8,1,1",
          x="float[n,4,h,w] x"),
    _pair("groups of 4, groups of 2", "<group=4>", "<group=2>", "U:16,1,1,1 V:4,8,3,3",
          x="float[n,4,h,w] x"),
    _pair("depthwise 1x1, padded depthwise 3x3", "<group=4>",
          "<group=4, pads=[1,1,1,1]>", "U:4,1,1,1 V:4,1,3,3 q:4", x="float[n,4,h,w] x"),
    _pair("depthwise 3x3, depthwise 1x1", "<group=4, pads=[1,1,1,1]>", "<group=4>",
          "U:4,1,3,3 p:4 V:4,1,1,1 q:4", x="float[n,4,h,w] x"),
    _pair("depthwise 1x1, dense 1x1", "<group=4>", "", "U:4,1,1,1 p:4 V:5,4,1,1",
          x="float[n,4,h,w] x"),
    _pair("grouped 1x1, dense 1x1 of a wide middle", "<group=2>", "", "U:32,2,1,1 V:2,32,1,1",
          x="float[n,4,h,w] x"),
    _pair("1x1, 3x3 by auto_pad, stride 1", "", '<auto_pad="SAME_UPPER">', _POINT_FIRST),
    _pair("1x1, 3x3 by auto_pad, stride 2, static", "",
          '<auto_pad="SAME_LOWER", strides=[2,2]>', _POINT_FIRST, x="float[n,2,6,7] x"),
    _pair("biased 1x1, 3x3 by auto_pad VALID", '<auto_pad="VALID">', '<auto_pad="VALID">',
          _POINT_FIRST_BIASED),
    _pair("conv1d: 1, padded 3", "", "<pads=[1,1]>", "U:16,2,1 V:2,16,3", x="float[n,2,l] x"),
    _pair("conv3d: 3x1x1, 1x3x3", "<pads=[1,0,0,1,0,0]>", "<pads=[0,1,1,0,1,1]>",
          "U:24,1,3,1,1 V:1,24,1,3,3", x="float[n,1,d,h,w] x"),
    collapse("serial: four 1x1", "a = Conv(x, A, p) b = Conv(a, B) c = Conv(b, C, q) "
             "y = Conv(c, D)", "Conv:1", "A:8,3,1,1 p:8 B:8,8,1,1 C:8,8,1,1 q:8 D:2,8,1,1"),
    collapse("serial: bottleneck whose whole is cheaper", "a = Conv(x, A) b = Conv(a, B) "
             "y = Conv(b, C)", "Conv:1", "A:2,16,1,1 B:16,2,1,1 C:2,16,1,1",
             x="float[n,16,h,w] x"),
    collapse("serial: conv, bn, conv, bn", "a = Conv(x, A) b = bn1(a) c = Conv(b, B) "
             "y = bn2(c)", "Conv:1", "A:16,3,1,1 bn1:16 B:2,16,3,3 bn2:2"),
    collapse("serial: the bn's shift ends at the border", "a = Conv(x, A) b = bn1(a) "
             "c = Conv<pads=[1,1,1,1]>(b, B) y = bn2(c)", "Conv:2",
             "A:16,3,1,1 bn1:16 B:2,16,3,3 bn2:2", reason=BORDER),
    collapse("serial: the bn has no shift", "a = Conv(x, A) b = bn(a) "
             "y = Conv<pads=[1,1,1,1]>(b, B)", "Conv:1", "A:16,3,1,1 bn:16 B:2,16,3,3",
             m=[0] * 16, s=[0] * 16),
    collapse("serial: the bn's shift takes the bias away", "a = Conv(x, A, p) b = bn(a) "
             "y = Conv<pads=[1,1,1,1]>(b, B)", "Conv:1", "A:16,3,1,1 p:16 bn:16 B:2,16,3,3",
             m=[1] * 16, s=[0] * 16, p=[1] * 16),
    collapse("serial: two readers, both cheaper without it", "a = Conv(x, A, p) "
             "y = Conv(a, B) z = Conv(a, C)", "Conv:2",
             "A:16,2,1,1 p:16 B:2,16,1,1 C:2,16,3,3",
             x="float[n,2,h,w] x", y="y, z"),
    collapse("serial: 1x1, global pool, 1x1", "a = Conv(x, A, p) b = GlobalAveragePool(a) "
             "y = Conv(b, B, q)", "Conv:1", "A:8,3,1,1 p:8 B:4,8,1,1 q:4", cheaper=True),
    collapse("serial: 1x1, global pool", "a = Conv(x, A, p) y = GlobalAveragePool(a)",
             "Conv|Gemm:1", "A:8,3,1,1 p:8", cheaper=True),
    collapse("serial: 1x1, mean, gemm", "a = Conv(x, A, p) "
             "b = ReduceMean<keepdims=0>(a, ax) y = Gemm<transB=1>(b, B, q)", "Conv|Gemm:1",
             "A:8,3,1,1 p:8 B:4,8 q:4 ax:2:int64", ax=[2, 3], cheaper=True),
    collapse("serial: 1x1, global pool, flatten, gemm", "a = Conv(x, A) "
             "b = GlobalAveragePool(a) f = Flatten(b) y = Gemm(f, B, q)", "Conv|Gemm:1",
             "A:8,3,1,1 B:8,4 q:4", cheaper=True),
    collapse("serial: 1x1, bn, global pool, flatten, bn, gemm", "a = Conv(x, A) b = bn1(a) "
             "c = GlobalAveragePool(b) f = Flatten(c) d = bn2(f) y = Gemm(d, B, q)",
             "Conv|Gemm:1", "A:8,3,1,1 bn1:8 bn2:8 B:8,4 q:4", cheaper=True),
]  # fmt: skip

_TEMPTING = [
    _pair("biased 1x1, padded 3x3", "", _P1, _POINT_FIRST_BIASED, verdict="keep",
          reason=BORDER),
    _pair("biased 1x1, 3x3 padded at one corner", "", "<pads=[0,0,0,1]>",
          _POINT_FIRST_BIASED, verdict="keep", reason=BORDER),
    _pair("biased 1x1, 3x3 by auto_pad", "", '<auto_pad="SAME_UPPER">', _POINT_FIRST_BIASED,
          verdict="keep", reason=r"pad|border"),
    _pair("one bias of sixteen, padded 3x3", "", _P1, _POINT_FIRST_BIASED, verdict="keep",
          reason=BORDER, p=[0] * 15 + [1e-3]),
    _pair("biased 1x1, padded 1x1", "", _P1, _ONE, verdict="keep", reason=BORDER),
    _pair("1x1 padded and biased, padded 3x3", _P1, _P1, _POINT_FIRST_BIASED, verdict="keep",
          reason=BORDER),
    _pair("3x3 padded by 1, 3x3 padded by 1", _P1, _P1, _THREES, verdict="keep",
          reason=BORDER, x=_ONE_CHANNEL),
    _pair("3x3 of dilation 2 padded by 2, padded 3x3", "<dilations=[2,2], pads=[2,2,2,2]>",
          _P1, _THREES, verdict="keep", reason=BORDER, x=_ONE_CHANNEL),
    _pair("3x3 whose padding is short at one side, padded 3x3", "<pads=[2,2,2,1]>", _P1,
          _THREES, verdict="keep", reason=BORDER, x=_ONE_CHANNEL),
    _pair("1x3 padded, 3x3 padded along the same axis", "<pads=[0,1,0,1]>", "<pads=[0,1,0,1]>",
          "U:16,1,1,3 V:1,16,3,3", verdict="keep", reason=BORDER, x=_ONE_CHANNEL),
    _pair("3x1, 1x3 with a bias between", "<pads=[1,0,1,0]>", "<pads=[0,1,0,1]>",
          "U:16,2,3,1 p:16 V:2,16,1,3", verdict="keep", reason=BORDER),
    _pair("3x3 of stride 2 padded by 1, padded 3x3", "<strides=[2,2], pads=[1,1,1,1]>", _P1,
          "U:32,1,3,3 V:1,32,3,3", verdict="keep", reason=BORDER, x=_ONE_CHANNEL),
    _pair("1x1, 3x3 by auto_pad, stride 2, dynamic", "",
          '<auto_pad="SAME_UPPER", strides=[2,2]>', _POINT_FIRST),
    keep("serial: relu between", "c = Conv(x, U) r = Relu(c) y = Conv(r, V)", None,
         "U:16,3,1,1 V:2,16,1,1"),
    keep("serial: relu6 between", "c = Conv(x, U) r = Clip(c, lo, hi) y = Conv(r, V)", None,
         "U:16,3,1,1 V:2,16,1,1 lo: hi:", lo=0, hi=6),
    keep("serial: max pool between", "c = Conv(x, U) r = MaxPool<kernel_shape=[2,2]>(c) "
         "y = Conv(r, V)", None, "U:16,3,1,1 V:2,16,1,1"),
]  # fmt: skip

_DEAR = [
    _pair("bottleneck of 1x1", "", "", "U:2,16,1,1 V:16,2,1,1", verdict="dear", reason=COST,
          x="float[n,16,h,w] x"),
    _pair("depthwise 3x3, pointwise", "<group=8, pads=[1,1,1,1]>", "",
          "U:8,1,3,3 p:8 V:8,8,1,1 q:8", verdict="dear", reason=COST, x="float[n,8,h,w] x"),
    _pair("pointwise, depthwise 3x3", "", "<group=8>", "U:8,8,1,1 V:8,1,3,3",
          verdict="dear", reason=COST, x="float[n,8,9,9] x"),
    _pair("3x3, 3x3 of equal width", "", "", "U:4,4,3,3 V:4,4,3,3", verdict="dear",
          reason=COST, x="float[n,4,32,32] x"),
    _pair("3x3 of dilation 2, 3x3", "<dilations=[2,2]>", "", "U:4,4,3,3 V:4,4,3,3",
          verdict="dear", reason=COST, x="float[n,4,32,32] x"),
    _pair("3x1, 1x3 of equal width", "", "", "U:4,4,3,1 V:4,4,1,3", verdict="dear",
          reason=COST, x="float[n,4,7,8] x"),
    _pair("groups of 2, groups of 3", "<group=2>", "<group=3>", "U:6,3,1,1 V:6,2,1,1",
          verdict="dear", reason=COST, x="float[n,6,5,4] x"),
    _pair("3x3, 1x1 that widens", "", "", "U:2,8,3,3 V:16,2,1,1", verdict="dear", reason=COST,
          x="float[n,8,5,5] x"),
    _pair("7x7 depthwise, pointwise", "<group=4, pads=[3,3,3,3]>", "",
          "U:4,1,7,7 V:4,4,1,1", verdict="dear", reason=COST, x="float[n,4,h,w] x"),
    dear("serial: channels shuffled between groups", "c = Conv<group=4>(x, U) "
         "e = Reshape(c, apart) f = Transpose<perm=[0,2,1,3,4]>(e) d = Reshape(f, back) "
         "y = Conv<group=4>(d, V)", None, "U:8,2,1,1 V:8,2,1,1 apart:5:int64 back:4:int64",
         apart=[0, 4, 2, 5, 4], back=[0, 8, 5, 4], x="float[n,8,5,4] x"),
    dear("serial: a middle of two readers that is dearer twice", "a = Conv(x, A) "
         "y = Conv(a, B) z = Conv(a, C)", COST, "A:4,16,1,1 B:4,4,1,1 C:4,4,1,1",
         x="float[n,16,h,w] x", y="y, z"),
]  # fmt: skip

GRAPHS = (*_EXACT, *_TEMPTING, *_DEAR)
