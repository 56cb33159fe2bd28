"""Rows 41 to 65: ONNX files from strangers, and verification that can say no.

The files are those of ``tests/attacks/onnx.py``. Each goes through ``vntools simplify``; what
ONNX's checker and other libraries let through goes through every other command as well, as
rows 52, 53, 55 and 57 go through ``build-engine``, which alone they bind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from tests.attacks.onnx import CORPUS, network, write
from tests.catalogue.frame import Row, Words, by_number, hold, in_process
from tests.graphs import onnx_bytes
from vntools.export import simplify
from vntools.export.load import load_onnx

Make = Callable[[Path], Words]


def simplified(name: str) -> Make:
    """``vntools simplify`` of one of the corpus."""
    return lambda folder: ["simplify", CORPUS[name](folder), "--out", folder / "out.onnx"]


def refused(number: int, code: str, says: str, *names: str) -> list[Row]:
    """``simplify`` refuses these files of the corpus."""
    return [Row(number, code, 65, simplified(n), says, case=n) for n in names]


LINK = "is a link|is no file of one name"
REFUSED = [
    *refused(41, "onnx.empty", "is empty", "empty"),
    *refused(42, "onnx.format", "an HTML or XML page", "html"),
    *refused(42, "onnx.format", "run git lfs pull", "lfs_pointer"),
    *refused(42, "onnx.format", "a pickle", "pickled"),
    *refused(42, "onnx.format", "a zip archive", "archive"),
    *refused(42, "onnx.format", "not an ONNX model$", "garbage"),
    *refused(43, "onnx.format", "not an ONNX model", "truncated"),
    *refused(43, "onnx.invalid", "no graph", "truncated_between_fields"),
    *refused(44, "onnx.invalid", "single static assignment", "concatenated"),
    *refused(45, "onnx.external", "points outside the model's folder", "external_parent",
             "external_absolute", "external_nameless", "external_dot"),
    *refused(46, "onnx.external", f"({LINK}).*copy the real file", "external_symlink",
             "external_folder_symlink", "external_hard_link"),
    *refused(47, "onnx.external", "is missing", "external_missing"),
    *refused(47, "onnx.external", "does not hold tensor 'W'", "external_length_beyond",
             "external_length_short", "external_length_negative", "external_offset_beyond",
             "external_offset_negative"),
    *refused(49, "onnx.invalid", "topologically sorted", "cycle", "self_loop",
             "undefined_input"),
    *refused(50, "onnx.invalid", "topologically sorted", "unsorted_nodes"),
    *refused(51, "onnx.invalid", "single static assignment", "duplicate_tensor"),
    *refused(51, "onnx.invalid", "not unique", "duplicate_initializer"),
    *refused(52, "onnx.opset", "opset is (0|missing)", "opset_0", "opset_none"),
    *refused(52, "onnx.opset", "IR version 99", "ir_99"),
    *refused(52, "onnx.invalid", "No Op registered for NoSuchOperator", "unknown_operator"),
    *refused(52, "onnx.invalid", "calls itself", "recursive_function"),
    *refused(52, "onnx.too_big", "over 65536 nodes", "doubling_functions",
             "doubling_functions_unused", "function_called_often"),
    *refused(52, "onnx.op", "sparse", "sparse_initializer"),
    *refused(53, "onnx.shape", "'x' has no rank", "dynamic_rank"),
    *refused(53, "onnx.shape", "'x' has an extent below 0", "negative_input"),
    *refused(53, "onnx.invalid", "outputs", "no_output"),
    *refused(56, "onnx.bn_stats", "epsilon .* is -2", "bn_negative_epsilon"),
    *refused(56, "onnx.bn_stats", "epsilon .* is 0", "bn_zero_epsilon"),
    *refused(56, "onnx.bn_stats", "variance .* is -1", "bn_negative_variance"),
    *refused(57, "onnx.control_flow", "takes over 65536 turns", "endless_loop"),
    *refused(60, "onnx.attr", "group of Conv", "wrong_group", "zero_group"),
    *refused(60, "onnx.attr", "strides of Conv", "zero_stride", "huge_stride"),
    *refused(60, "onnx.attr", "dilations of Conv", "zero_dilation"),
    *refused(60, "onnx.attr", "pads of Conv", "negative_pads", "huge_pads"),
    *refused(60, "onnx.attr", "reads 6 channels of 3", "wrong_channels"),
    *refused(60, "onnx.attr", "is of a function", "attribute_of_a_function"),
    *refused(61, "onnx.tensor", "bytes, not 48", "short_data", "long_data"),
    *refused(61, "onnx.tensor", "shape", "negative_dims", "overflowing_dims"),
    *refused(61, "onnx.tensor", "type 77", "unknown_dtype"),
    *refused(61, "onnx.tensor", "3e\\+11 elements", "huge_constant"),
    *refused(61, "onnx.tensor", "'x' .* 3e\\+10 elements", "huge_input"),
    *refused(61, "onnx.invalid", "tensor data type 0", "value_without_a_type"),
    *refused(62, "onnx.format", "not an ONNX model", "deep_nesting"),
    *refused(62, "onnx.invalid", r"Sh\\x1b\[2Jell", "strange_names"),
    *refused(63, "onnx.nonfinite", "1 of 12 numbers of 'W' are not finite", "nan_weight",
             "infinite_weight"),
    *refused(63, "onnx.nonfinite", "12 of 12 numbers of 'W'", "external_nan"),
    *refused(63, "onnx.nonfinite", "'half' are NaN", "nan_half"),
    *refused(63, "onnx.nonfinite", "'c' are NaN", "nan_constant"),
]  # fmt: skip


@by_number(REFUSED)
def test_what_is_refused(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)


def good(folder: Path) -> Path:
    (folder / "good").mkdir()
    return write(folder / "good", network())


def images(folder: Path) -> Path:
    (folder / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "images" / "a" / "0.png")
    return folder / "images"


CPU = ("--device", "cpu")
COMMANDS: dict[str, Callable[[Path, Path], Words]] = {
    "bench": lambda path, _: ["bench", "--onnx", path, *CPU],
    "eval": lambda path, folder: ["eval", "--onnx", path, "--data", images(folder), *CPU],
    "verify": lambda path, folder: ["verify", path, "--against", good(folder), *CPU],
    "against": lambda path, folder: ["verify", good(folder), "--against", path, *CPU],
    "inspect": lambda path, _: ["inspect", path],
    "build-engine": lambda path, _: ["build-engine", path],
}
DANGEROUS = {
    "external_parent": (45, "onnx.external"),
    "external_hard_link": (46, "onnx.external"),
    "external_offset_beyond": (47, "onnx.external"),
    "unsorted_nodes": (50, "onnx.invalid"),
    "opset_none": (52, "onnx.opset"),
    "bn_negative_epsilon": (56, "onnx.bn_stats"),
    "bn_negative_variance": (56, "onnx.bn_stats"),
    "zero_stride": (60, "onnx.attr"),
    "huge_pads": (60, "onnx.attr"),
    "wrong_channels": (60, "onnx.attr"),
    "huge_constant": (61, "onnx.tensor"),
    "huge_input": (61, "onnx.tensor"),
    "value_without_a_type": (61, "onnx.invalid"),
    "long_data": (61, "onnx.tensor"),
    "unknown_dtype": (61, "onnx.tensor"),
    "nan_weight": (63, "onnx.nonfinite"),
}


def through(command: str, name: str) -> Make:
    return lambda folder: COMMANDS[command](CORPUS[name](folder), folder)


@by_number(
    [
        Row(number, code, 65, through(command, name), case=f"{name}-{command}", json=False)
        for name, (number, code) in DANGEROUS.items()
        for command in COMMANDS
    ]
)
def test_no_other_library_sees_it(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)


def built(number: int, code: str, says: str, name: str) -> Row:
    make = through("build-engine", name)
    return Row(number, code, 65, make, says, case=f"{name}-build-engine", json=False)


@by_number(
    [
        built(52, "onnx.opset", "opset is 999, supported are 13 to", "opset_999"),
        built(52, "onnx.op", "of the domain 'far.away'", "unknown_domain"),
        built(53, "onnx.shape", "only the batch may be open", "dynamic_height"),
        built(55, "onnx.bn_training", r"model\.eval\(\)", "bn_training"),
        built(57, "onnx.control_flow", "If .* holds a subgraph", "control_flow"),
    ]
)
def test_what_no_engine_is_built_from(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)


@pytest.mark.parametrize("command", ["simplify", "build-engine", "bench"])
def test_048_too_big(tmp_path: Path, command: str) -> None:
    """By its size alone, before any work: its blocks are not even written."""
    path = write(tmp_path, network())
    with path.open("r+b") as f:
        f.truncate(1 << 31)
    words = {"simplify": ["--out", tmp_path / "out.onnx"], "bench": CPU}.get(command, ())
    done = in_process([command, path, *words])
    assert done.status == 65
    assert "error[onnx.too_big]: " in done.stderr
    assert "takes 2.1 GB, protobuf holds 2" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def accepted(number: int, name: str, code: str = "", says: str = "") -> Row:
    make = simplified(name)
    return Row(number, code, 0, make, says, "written", ("out.onnx",), case=name)


ACCEPTED = [
    accepted(51, "duplicate_node"),
    accepted(52, "opset_999", "verify.limited", "before and after"),
    accepted(52, "unknown_domain", "verify.limited", "only the rewritten regions"),
    accepted(52, "local_function"),
    accepted(52, "training_info"),
    accepted(61, "doubling_sums"),
    accepted(61, "window_without_end"),
    accepted(53, "dynamic_height"),
    accepted(53, "many_open_axes", "verify.limited", "input takes over 536870912 elements"),
    accepted(54, "overridable", "onnx.overridable", "override W; they are left alone"),
    accepted(55, "bn_training"),
    accepted(57, "control_flow"),
    accepted(62, "strange_names_of_a_good_graph", "onnx.overridable", r"\\x1b\[31mW\\n"),
]


@by_number(ACCEPTED)
def test_what_is_simplified(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)


def test_054_057_what_may_change_is_not_folded(tmp_path: Path) -> None:
    """A weight that a caller may override, or that a branch reads too, stays as it is."""
    for name in ("overridable", "control_flow"):
        (tmp_path / name).mkdir()
        before = load_onnx(CORPUS[name](tmp_path / name)).model.graph.initializers["W"]
        out = tmp_path / name / "out.onnx"
        assert in_process(["simplify", tmp_path / name / "m.onnx", "--out", out]).status == 0
        after = load_onnx(out).model.graph.initializers["W"]
        assert before.const_value is not None
        assert after.const_value is not None
        assert np.array_equal(before.const_value.numpy(), after.const_value.numpy())


WEIGHTS = "<float[4,3,1,1] V, float[4,4,3,3] W, float[4,3,1,1] U>"
BEHIND = f"(float[1,3,8,8] x) => (float[1,4,n,m] y) {WEIGHTS} {{ a = Conv(x, V) %s }}"
KEPT = {
    58: {
        "used_twice": "b = Conv<pads=[1,1,1,1]>(a, W) y = Mul(a, b)",
        "shared_weight": "r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, W) s = Relu(b) "
        "y = Conv<pads=[1,1,1,1]>(s, W)",
    },
    59: {
        "pads": "r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, W)",
        "stride": "r = Relu(a) y = Conv<strides=[2,2]>(r, W)",
        "dilation": "r = Relu(a) y = Conv<dilations=[2,2]>(r, W)",
        "auto_pad": 'r = Relu(a) y = Conv<auto_pad="SAME_UPPER">(r, W)',
    },
}


@by_number(
    [
        Row(
            number,
            "",
            0,
            lambda folder, body=body: [
                "simplify", write(folder, onnx_bytes(BEHIND % body)),
                "--out", folder / "out.onnx",
            ],
            files="written",
            outputs=("out.onnx",),
            case=case,
        )
        for number, bodies in KEPT.items()
        for case, body in bodies.items()
    ]
)  # fmt: skip
def test_what_is_left_alone(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)
    before, after = (
        [n.op_type for n in onnx.load(tmp_path / name).graph.node]
        for name in ("m.onnx", "out.onnx")
    )
    assert before == after


def test_064_a_wrong_merge_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = simplify.tidy

    def wrong(model: ir.Model) -> ir.Model:
        tidied = right(model)
        value = next(iter(tidied.graph.initializers.values()))
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.0001))
        return tidied

    monkeypatch.setattr(simplify, "tidy", wrong)
    path = write(tmp_path, network())
    words = ["simplify", path, "--out", tmp_path / "out.onnx"]
    hold(Row(64, "verify.mismatch", 1, lambda _: words, "allowed"), tmp_path)
    monkeypatch.undo()
    assert in_process(words).status == 0


COMPARED = {
    "nan_left": ("y = Log(x)", "y = Identity(x)", "verify.nonfinite"),
    "nan_right": ("y = Identity(x)", "y = Log(x)", "verify.nonfinite"),
    "nan_both": ("y = Log(x)", "y = Log(x)", "verify.nonfinite"),
    "empty": ("y = Slice(x, z, z)", "y = Slice(x, z, z)", "verify.outputs"),
    "zero_both": ("y = Sub(x, x)", "y = Sub(x, x)", "verify.zero"),
    "zero_right": ("y = Identity(x)", "y = Sub(x, x)", "verify.zero"),
    "shape": ("y = Identity(x)", "y = Concat<axis=1>(x, x)", "verify.shape"),
    "sign": ("y = Identity(x)", "y = Neg(x)", "verify.mismatch"),
}


def compared(*bodies: str) -> Make:
    def make(folder: Path) -> Words:
        files: list[Path] = []
        for body in bodies:
            extent = "m" if "Slice" in body or "Concat" in body else "6"
            zero = "<int64[1] z>" if "Slice" in body else ""
            text = f"(float[n,6] x) => (float[n,{extent}] y) {zero} {{ {body} }}"
            (folder / str(len(files))).mkdir()
            data = onnx_bytes(text, **({"z": np.zeros(1)} if zero else {}))
            files.append(write(folder / str(len(files)), data))
        return ["verify", files[0], "--against", files[1], *CPU]

    return make


@by_number(
    [
        Row(64 if case == "sign" else 65, code, 1, compared(a, b), case=case)
        for case, (a, b, code) in COMPARED.items()
    ]
)
def test_what_proves_nothing(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)


def test_every_file_of_the_corpus_has_a_row() -> None:
    assert {r.case for r in (*REFUSED, *ACCEPTED)} == CORPUS.keys()
