"""What random graphs and second thoughts found wrong, one graph a fault."""

from __future__ import annotations

__all__ = ["GRAPHS"]

import numpy as np

from tests.collection.base import Graph, collapse, dear, keep

GRAPHS: tuple[Graph, ...] = (
    keep("found: biases on two axes of a sum", "a = Add(x, B) c = Add(z, C) y = Add(a, c)",
         "different axes", "B:4,1 C:4", x="float[n,4,4] x, float[n,4,4] z"),
    keep("found: biases on axes of two sizes", "a = Add(x, B) c = Add(z, C) y = Add(a, c)",
         "different axes", "B:3,1 C:4", x="float[n,3,4] x, float[n,3,4] z"),
    keep("found: a bias on the width beside a convolution",
         "a = Conv(x, W) c = Add(z, C) y = Add(a, c)", "different axes", "W:3,3,1,1 C:3",
         x="float[n,3,h,3] x, float[n,3,h,3] z"),
    keep("found: a pool between 1x1 and global pool",
         "a = Conv(x, W) p = AveragePool<kernel_shape=[2,2]>(a) y = GlobalAveragePool(p)",
         None, "W:2,4,1,1", x="float[n,4,5,4] x"),
    collapse("found: a left matrix before a mean",
             "a = MatMul(L, x) y = ReduceMean(a, axes)", "MatMul:1", "L:4,3 axes:1:int64",
             x="float[n,3,l] x", axes=[2]),
    collapse("found: one bias for two convolutions",
             "a = Conv(x, W) c = Conv(z, V) d = Sum(a, k, c) y = Mul(d, t)",
             "Conv:2 Add:1", "W:2,3,1,1 V:2,3,1,1 k:1 t:1",
             x="float[n,3,h,w] x, float[n,3,h,w] z", k=[0.5], t=[2.0]),
    collapse("found: a value and its convolution, shifted",
             "a = ConvTranspose<strides=[2], output_padding=[1], pads=[1,0]>(x, W) "
             "b = Conv<dilations=[2], pads=[1,1]>(a, V) c = Add(b, a) y = Add(c, k)",
             "ConvTranspose:1 Conv:1 Add:1", "W:4,1,2 V:1,1,2 k:1,1,1", x="float[2,4,7] x",
             runs="float64"),
    collapse("found: a padded product before a transposed convolution",
             "a = MatMul(L, x) b = Pad(a, p) y = ConvTranspose<strides=[2], pads=[1,1]>(b, W)",
             "MatMul|Conv:1 ConvTranspose:1", "L:1,2 W:1,1,2 p:6:int64", x="float[1,2,5] x",
             p=[0, 0, 1, 0, 0, 1]),
    dear("found: a padded 1x1 behind a wide one",
         "a = Conv(x, W) y = Conv<pads=[2,2,2,2]>(a, V)",
         None, "W:1,3,1,1 V:1,1,1,1"),
    keep("found: no channels",
         "a = Add(x, B) y = Mul(a, C)", None, "B:0 C:0", x="float[2,0] x",
         feeds={"x": np.zeros((2, 0))}),
    keep("found: a mean over four axes", "y = ReduceMean(x, axes)", None, "axes:4:int64",
         x="float[n,2,3,2,2,3] x", axes=[2, 3, 4, 5]),
    keep("found: slopes that widen", "a = Conv(x, W) b = PRelu(a, k) y = Conv(b, V)",
         "broadcast", "W:1,3,1,1 k:4,1,1 V:2,4,1,1", k=np.ones((4, 1, 1)), runs="nowhere"),
)  # fmt: skip
