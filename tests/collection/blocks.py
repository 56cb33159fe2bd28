"""Blocks of published networks in their training form, with the nodes of the deploy form."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import collapse

_X4 = "float[n,4,h,w] x"
_DW = "<group=4, pads=[1,1,1,1]>"
_P1 = "<pads=[1,1,1,1]>"

_REPARAMETERISED = [
    collapse("block: RepVGG", f"a = Conv{_P1}(x, A) b = bn1(a) c = Conv(x, C) d = bn2(c) "
             "e = bn3(x) f = Add(b, d) k = Add(f, e) y = Relu(k)", "Conv:1",
             "A:4,4,3,3 bn1:4 C:4,4,1,1 bn2:4 bn3:4", x=_X4),
    collapse("block: RepVGG of stride 2", "a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, A) "
             "b = bn1(a) c = Conv<strides=[2,2]>(x, C) d = bn2(c) f = Add(b, d) y = Relu(f)",
             "Conv:1", "A:6,4,3,3 bn1:6 C:6,4,1,1 bn2:6", x=_X4),
    collapse("block: RepVGG of groups", "a = Conv<group=2, pads=[1,1,1,1]>(x, A) b = bn1(a) "
             "c = Conv<group=2>(x, C) d = bn2(c) e = bn3(x) f = Add(b, d) k = Add(f, e) "
             "y = Relu(k)", "Conv:1", "A:4,2,3,3 bn1:4 C:4,2,1,1 bn2:4 bn3:4", x=_X4),
    collapse("block: two RepVGG", f"a = Conv{_P1}(x, A) b = bn1(a) c = Conv(x, C) d = bn2(c) "
             f"e = Add(b, d) f = Relu(e) k = Conv{_P1}(f, D) l = bn3(k) o = bn4(f) "
             "q = Add(o, l) y = Relu(q)", "Conv:2",
             "A:4,4,3,3 bn1:4 C:4,4,1,1 bn2:4 D:4,4,3,3 bn3:4 bn4:4", x=_X4),
    collapse("block: MobileOne depthwise", f"a = Conv{_DW}(x, A) b = bn1(a) "
             f"c = Conv{_DW}(x, C) d = bn2(c) e = Conv<group=4>(x, E) f = bn3(e) k = bn4(x) "
             "l = Sum(b, d, f) o = Add(l, k) y = Relu(o)", "Conv:1",
             "A:4,1,3,3 bn1:4 C:4,1,3,3 bn2:4 E:4,1,1,1 bn3:4 bn4:4", x=_X4),
    collapse("block: MobileOne pointwise", "a = Conv(x, A) b = bn1(a) c = Conv(x, C) "
             "d = bn2(c) e = bn3(x) z = Add(zero, b) f = Add(z, d) k = Add(f, e) y = Relu(k)",
             "Conv:1", "A:4,4,1,1 bn1:4 C:4,4,1,1 bn2:4 bn3:4 zero:", zero=0, x=_X4),
    collapse("block: diverse branches", f"a = Conv{_P1}(x, A) b = bn1(a) c = Conv(x, C) "
             "d = bn2(c) m = Conv<pads=[1,1,1,1]>(x, M) o = bn3(m) e = Conv(o, E) f = bn4(e) "
             "u = Conv(x, U) u0 = Mul(u, k) p = AveragePool<kernel_shape=[3,3], "
             "pads=[1,1,1,1], count_include_pad=1>(u0) q = bn6(p) z = Add(b, d) "
             "z1 = Add(z, f) y = Add(z1, q)", "Conv:1 AveragePool:0",
             "A:4,4,3,3 bn1:4 C:4,4,1,1 bn2:4 M:4,4,1,1 bn3:4 E:4,4,3,3 bn4:4 U:4,4,1,1 "
             "k:4,1,1 bn6:4", x=_X4),
    collapse("block: RepLKNet", "a = Conv<group=4, pads=[3,3,3,3]>(x, A) b = bn1(a) "
             f"c = Conv{_DW}(x, C) d = bn2(c) e = Add(b, d) y = Relu(e)", "Conv:1",
             "A:4,1,7,7 bn1:4 C:4,1,3,3 bn2:4", x=_X4),
    collapse("block: dilated reparameterisation", "a = Conv<group=4, pads=[4,4,4,4]>(x, A) "
             "b = bn1(a) c = Conv<group=4, dilations=[2,2], pads=[4,4,4,4]>(x, C) d = bn2(c) "
             "e = Conv<group=4, dilations=[3,3], pads=[3,3,3,3]>(x, E) f = bn3(e) "
             "k = Add(b, d) y = Add(k, f)", "Conv:1",
             "A:4,1,9,9 bn1:4 C:4,1,5,5 bn2:4 E:4,1,3,3 bn3:4", x=_X4),
    collapse("block: RepMixer", f"r = bn1(x) a = Conv{_DW}(x, A) b = bn2(a) "
             "c = Conv<group=4>(x, C) d = bn3(c) e = bn4(x) f = Add(b, d) k = Add(f, e) "
             "l = Sub(k, r) o = Mul(gamma, l) y = Add(x, o)", "Conv:1",
             "bn1:4 A:4,1,3,3 bn2:4 C:4,1,1,1 bn3:4 bn4:4 gamma:4,1,1", x=_X4),
    collapse("block: RepViT", f"a = Conv{_DW}(x, A) b = bn1(a) c = Conv<group=4>(x, C, p) "
             "d = Add(b, c) e = Add(d, x) y = bn2(e)", "Conv:1",
             "A:4,1,3,3 bn1:4 C:4,1,1,1 p:4 bn2:4", x=_X4),
    collapse("block: position by convolution", "a = Conv<group=4, pads=[3,3,3,3]>(x, A, p) "
             "y = Add(a, x)", "Conv:1", "A:4,1,7,7 p:4", x=_X4),
    collapse("block: RepGhost", f"a = Conv(x, W, p) r = Relu(a) b = Conv{_DW}(r, A) "
             "c = bn1(b) d = bn2(r) e = Add(c, d) y = Relu(e)", "Conv:2",
             "W:4,4,1,1 p:4 A:4,1,3,3 bn1:4 bn2:4", x=_X4),
    collapse("block: GhostNetV3", "a = Conv(x, A) b = bn1(a) c = Conv(x, C) d = bn2(c) "
             "e = Conv(x, E) f = bn3(e) k = Add(b, d) l = Add(k, f) r = Relu(l) "
             f"o = Conv{_DW}(r, O) q = bn4(o) t = Conv<group=4>(r, T) u = bn5(t) z = bn6(r) "
             "z1 = Add(q, u) y = Add(z1, z)", "Conv:2",
             "A:4,4,1,1 bn1:4 C:4,4,1,1 bn2:4 E:4,4,1,1 bn3:4 O:4,1,3,3 bn4:4 T:4,1,1,1 "
             "bn5:4 bn6:4", x=_X4),
    collapse("block: LCNetV2 of stride 2", "a = Conv<group=4, strides=[2,2], pads=[2,2,2,2]>"
             "(x, A) b = bn1(a) c = Conv<group=4, strides=[2,2], pads=[1,1,1,1]>(x, C) "
             "d = bn2(c) e = Conv<group=4, strides=[2,2]>(x, E) f = bn3(e) k = Add(b, d) "
             "y = Add(k, f)", "Conv:1", "A:4,1,5,5 bn1:4 C:4,1,3,3 bn2:4 E:4,1,1,1 bn3:4",
             x=_X4),
    collapse("block: ACNet of stride 2", "a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, A) "
             "b = bn1(a) c = Conv<strides=[2,2], pads=[1,0,1,0]>(x, C) d = bn2(c) "
             "e = Conv<strides=[2,2], pads=[0,1,0,1]>(x, E) f = bn3(e) k = Add(d, f) "
             "y = Add(b, k)", "Conv:1", "A:4,4,3,3 bn1:4 C:4,4,3,1 bn2:4 E:4,4,1,3 bn3:4",
             x=_X4),
]  # fmt: skip

_FUSED = [
    collapse("block: SHViT", f"a = Conv{_DW}(x, A) b = bn(a) c = Add(x, b) "
             "d = Conv(c, W) e = bn2(d) y = Relu(e)", "Conv:2",
             "A:4,1,3,3 bn:4 W:8,4,1,1 bn2:8", x=_X4),
    collapse("block: EfficientViM", f"a = Conv{_DW}(x, A) b = bn(a) s0 = Sigmoid(alpha) "
             "g1 = Reshape(s0, sh) c = Sub(b, x) d = Mul(g1, c) y = Add(x, d)", "Conv:1",
             "A:4,1,3,3 bn:4 alpha:4 sh:4:int64", sh=[1, 4, 1, 1], x=_X4),
    collapse("block: EfficientViM's mixture", f"a = Conv{_DW}(x, A) b = bn(a) "
             "s0 = Sigmoid(alpha) c = Sub(one, s0) d = Mul(c, x) e = Mul(s0, b) y = Add(d, e)",
             "Conv:1", "A:4,1,3,3 bn:4 alpha:4,1,1 one:", one=1, x=_X4),
    collapse("block: LeViT", "a = MatMul(x, W) b = Reshape(a, flat) c = bn(b) "
             "s0 = Shape(a) d = Reshape(c, s0) e = HardSwish(d) f = MatMul(e, V) "
             "k = Reshape(f, flat2) l = bn2(k) t = Shape(x) o = Reshape(l, t) y = Add(x, o)",
             "MatMul|Gemm:2 Add:3", "W:4,8 flat:2:int64 bn:8 V:8,4 flat2:2:int64 bn2:4",
             flat=[-1, 8], flat2=[-1, 4], x="float[n,s,4] x"),
    collapse("block: FastViT's attention", "a = Sigmoid(x) b = bn(a) c = Reshape(b, sh) "
             "d = Transpose<perm=[0,2,1]>(c) y = MatMul(d, W)", "MatMul:1 Add:1",
             "bn:4 sh:3:int64 W:4,12", sh=[0, 4, -1], x=_X4),
    collapse("block: NextViT's keys", "a = Sigmoid(x) b = bn1(a) "
             "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(b) c = bn2(p) k = Conv(c, K) "
             "q = Conv(c, V, r) y0 = Softmax(k) y = Mul(y0, q)", "Conv:2 Mul:1",
             "bn1:4 bn2:4 K:4,4,1,1 V:4,4,1,1 r:4", x=_X4),
    collapse("block: NextViT's head", "a = Sigmoid(x) b = bn(a) p = GlobalAveragePool(b) "
             "f = Flatten(p) y = Gemm<transB=1>(f, W, q)", "Gemm|Conv:1", "bn:4 W:5,4 q:5",
             x=_X4),
    collapse("block: layer scale", f"a = Conv{_DW}(x, A, q) b = bn(a) c = Conv(b, W) "
             "r = Relu(c) d = Conv(r, V, u) e = Mul(d, gamma) y = Add(x, e)", "Conv:3 Add:1",
             "A:4,1,3,3 q:4 bn:4 W:16,4,1,1 V:4,16,1,1 u:4 gamma:1,4,1,1", x=_X4),
    collapse("block: MobileOne with squeeze and excitation", f"a = Conv{_P1}(x, A) b = bn1(a) "
             "c = Conv(x, C) d = bn2(c) e = Add(b, d) p = GlobalAveragePool(e) f = Conv(p, F) "
             "r = Relu(f) k = Conv(r, K) z = Sigmoid(k) y = Mul(e, z)",
             "Conv:3 Mul:1", "A:4,4,3,3 bn1:4 C:4,4,1,1 bn2:4 F:2,4,1,1 K:4,2,1,1", x=_X4),
    collapse("block: VanillaNet", "a = Conv(x, A, p) b = bn1(a) l = LeakyRelu<alpha=1.0>(b) "
             "c = Conv(l, C, q) d = bn2(c) k = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d) "
             "r = Relu(k) e = Conv<group=6, pads=[1,1,1,1]>(r, E) y = bn3(e)", "Conv:2",
             "A:4,4,1,1 p:4 bn1:4 C:6,4,1,1 q:6 bn2:6 E:6,1,3,3 bn3:6", x=_X4),
    collapse("block: residual of a ResNet", f"a = Conv{_P1}(x, A) b = bn1(a) r = Relu(b) "
             f"c = Conv{_P1}(r, C) d = bn2(c) k = Conv(x, K) l = bn3(k) e = Add(d, l) "
             "y = Relu(e)", "Conv:3 Add:1",
             "A:4,4,3,3 bn1:4 C:4,4,3,3 bn2:4 K:4,4,1,1 bn3:4", x=_X4),
    collapse("block: inverted residual", "a = Conv(x, A) b = bn1(a) l = Clip(b, lo, hi) "
             "c = Conv<group=8, pads=[1,1,1,1]>(l, C) d = bn2(c) k = Clip(d, lo, hi) "
             "e = Conv(k, E) f = bn3(e) y = Add(x, f)", "Conv:3 Add:1",
             "A:8,4,1,1 bn1:8 C:8,1,3,3 bn2:8 E:4,8,1,1 bn3:4 lo: hi:", lo=0, hi=6, x=_X4),
]  # fmt: skip

GRAPHS = (*_REPARAMETERISED, *_FUSED)
