"""What a Skip must say, each as a regular expression: the matter, not the wording."""

from __future__ import annotations

__all__ = [
    "AXIS",
    "BORDER",
    "CAST",
    "COST",
    "DATA",
    "NORM",
    "OUTPUT",
    "OVERFLOW",
    "OVERRIDE",
    "QUANT",
    "READ",
    "SIGN",
    "SIZE",
    "SLOPE",
    "STATISTICS",
    "TRAINING",
]

AXIS = r"ax[ie]s|broadcast|shape"
BORDER = r"pad|border"
CAST = r"cast|type|round|dropout"
COST = r"cost|dear|multiply-accumulates"
DATA = r"not constant|data|computed|varies"
NORM = r"normali[sz]|data"
OUTPUT = r"graph output"
OVERFLOW = r"overflow|range"
OVERRIDE = r"overrid|not constant"
QUANT = r"quanti"
READ = r"read elsewhere|read|subgraph"
SIGN = r"negative|positive|sign"
SIZE = r"broadcast|size|shape"
SLOPE = r"slope"
STATISTICS = r"var|epsilon|finite"
TRAINING = r"training"
