"""Small graphs with what must become of each: exact, tempting but wrong, exact but dear."""

from __future__ import annotations

__all__ = ["GRAPHS", "Graph"]

from tests.collection import (
    affines_before,
    blocks,
    channel_affines,
    forms,
    found,
    matrices,
    nonlinear,
    parallel,
    readers,
    serial,
    transposed,
)
from tests.collection.base import Graph

_SUBJECTS = (
    channel_affines,
    affines_before,
    matrices,
    serial,
    parallel,
    blocks,
    transposed,
    nonlinear,
    readers,
    forms,
    found,
)
GRAPHS: dict[str, Graph] = {g.name: g for subject in _SUBJECTS for g in subject.GRAPHS}
assert len(GRAPHS) == sum(len(s.GRAPHS) for s in _SUBJECTS), "two graphs have one name"
