"""The page of a result: whole, self-contained, and safe to open."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from vntools.base.errors import Unavailable
from vntools.report.page import page

ROW = {"min": 1.0, "median": 1.5, "mean": 1.6, "p90": 2.0, "p99": 2.5, "max": 3.0}
MEASURED: dict[str, Any] = {
    "batch": 8,
    "protocol": "onnxruntime-cpu 1.31, batch 8 <b>",
    "latency_ms": ROW,
    "compute_ms": ROW,
    "throughput_qps": 600.0,
    "images_per_s": 4800.0,
    "n_queries": 30,
    "warnings": ["compute time is unstable"],
    "samples": {"latency_ms": [1.0, 1.5, 2.0, 3.0] * 10},
    "layers": [
        {"name": f"stages.{i}.conv", "ms": 0.1 * (i + 1), "floor_ms": 0.05} for i in range(50)
    ],
    "environment": {"versions": {"numpy": "2"}},
}
FLOOR = {
    "device": {"name": "T4"},
    "floor_ms": 0.5,
    "layered_ms": 0.7,
    "binds": "memory",
    "median_over_floor": 3.0,
}
COMPARED: dict[str, Any] = {
    "rounds": 12,
    "contenders": [
        {"name": "A", "backend": "x", "median_ms": 1.0, "relation": None},
        {
            "name": "B",
            "backend": "x",
            "median_ms": 0.8,
            "relation": {"ratio": 0.8, "low": 0.7, "high": 0.9, "verdict": "faster"},
        },
    ],
}
PUBLISHED = {"latency_ms": 1.61, "tensorrt_fp32_a100_ms": 0.33, "tensorrt_fp16_a100_ms": 0.27,
             "top1": 72.49}  # fmt: skip
SUITE: dict[str, Any] = {
    "rows": [
        {
            "name": "vanillanet_5",
            "depth": 5,
            "parameters_m": 15.52,
            "gmacs": 5.16,
            "published": PUBLISHED,
            "median_ms": 30.0,
            "floor_ms": 12.0,
            "why": "",
        },
        {
            "name": "<script>alert(1)</script>",
            "depth": None,
            "parameters_m": None,
            "gmacs": None,
            "published": None,
            "median_ms": None,
            "why": "not an ONNX model",
        },
    ]
}


class Outline(HTMLParser):
    """Tags that are open at the end, all tags, and words."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(record: dict[str, Any]) -> tuple[str, Outline]:
    text = page(record, title="a <title>", command="vntools bench --onnx a.onnx")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    return text, outline


@pytest.mark.parametrize(
    ("record", "pictures", "words"),
    [
        (MEASURED, 2, ["Batch 8", "4800.0 images", "compute time is unstable", "10 shorter"]),
        ({"measurements": [MEASURED, MEASURED | {"batch": 64}]}, 4, ["Batch 8", "Batch 64"]),
        (COMPARED, 1, ["0.700 to 0.900", "faster", "12 rounds"]),
        (SUITE, 1, ["vanillanet_5", "0.27", "failed", "not an ONNX model"]),
        (MEASURED | {"samples": {}, "layers": []}, 0, ["1.5"]),
        (MEASURED | {"floor": FLOOR}, 2, ["Floor on T4: 0.5 ms, memory binds", "3 times"]),
    ],
)
def test_what_stands_on_it(record: dict[str, Any], pictures: int, words: list[str]) -> None:
    _, outline = read(record)
    assert outline.seen.count("svg") == pictures
    for word in (*words, "vntools bench --onnx a.onnx", "a <title>"):
        assert word in outline.words


def test_it_asks_the_network_for_nothing_and_runs_nothing() -> None:
    text, outline = read(MEASURED | COMPARED | SUITE)
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.seen)
    assert "<script" not in text
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert all(link.startswith("#") for link in links)
    assert "url(http" not in text
    assert "@import" not in text


def test_pictures_have_the_ink_of_the_page() -> None:
    text, _ = read(MEASURED)
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text
    assert text == read(MEASURED)[0], "the same page again"


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unavailable, match="matplotlib") as e:
        read(MEASURED)
    assert "report" in (e.value.hint or "")
