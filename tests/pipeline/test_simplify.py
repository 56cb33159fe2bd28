"""vntools simplify on odd graphs: read, left alone or rewritten, verified, written."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest

from tests.graphs import parsed
from vntools.base.artifacts import sealed
from vntools.base.errors import CheckFailed, DataFault, UsageFault
from vntools.export.load import load_onnx
from vntools.pipeline import serialize, witness
from vntools.pipeline.export import Exported
from vntools.pipeline.simplify import SimplifyOptions, simplify
from vntools.pipeline.witness import find_witness, sized_feeds

STATISTICS = "float[4] g, float[4] b, float[4] m, float[4] v"
CONV = "c = Conv(x, w) z = BatchNormalization(c, g, b, m, v)"
BATCH = "(float[n,3,5,6] x)"
HELD = f"<float[4,3,1,1] w, {STATISTICS}>"
BRANCHES = (
    "<then_branch = t () => (float[n,4,h,w] p) { p = Sin(z) }, "
    "else_branch = e () => (float[n,4,h,w] q) { q = Exp(z) }>"
)


class Heard:
    """A listener that remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []

    def note(self, text: str) -> None: ...

    def warn(self, code: str, text: str) -> None:
        self.warnings.append((code, text))

    @contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Generator[Any, None, None]:
        yield lambda: None

    @property
    def codes(self) -> list[str]:
        return [code for code, _ in self.warnings]


def simplified(
    folder: Path, text: str, *, opset: int = 17, foreign: str = ""
) -> tuple[Exported, Heard]:
    model = parsed(text, opset=opset, foreign=foreign)
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    heard = Heard()
    return simplify(SimplifyOptions(folder / "in.onnx", folder / "out.onnx"), heard), heard


@pytest.mark.parametrize(
    ("text", "opset", "way", "left"),
    [
        (f"{BATCH} => (float[n,4,5,6] y) {HELD} {{ {CONV} y = Relu(z) }}", 17, "float64", 0),
        (
            f"(float[n,3,h,l] x) => (float[n,4,h,l] y) {HELD} {{ {CONV} y = Relu(z) }}",
            17,
            "float64",
            0,
        ),
        (
            (
                f"(float[n,3,h,l] x, bool k) => (float[n,4,h,l] y) {HELD} "
                f"{{ {CONV} y = If(k) {BRANCHES} }}"
            ),
            17,
            "float64",
            0,
        ),
        (
            (
                f"{BATCH} => (float[n,4,5,6] y) {HELD} {{ c = Conv(x, w) "
                "y, p, q = BatchNormalization<training_mode=1>(c, g, b, m, v) }"
            ),
            17,
            "float64",
            1,
        ),
        (
            (
                f"{BATCH} => (float[n,4,5,6] y) {HELD} "
                f"{{ {CONV} r = RandomNormalLike(z) y = Add(z, r) }}"
            ),
            17,
            "float64 alone",
            0,
        ),
        (
            (
                f"{BATCH} => (float[n,60,a] y) <float[4,3,1,1] w> "
                "{ c = Conv(x, w) y = Reshape<shape=[0,60,-1]>(c) }"
            ),
            4,
            "float64",
            None,
        ),
        (
            f"{BATCH} => (float[n,a,b,c] y) {HELD} {{ {CONV} y = test.Any(z) }}",
            17,
            "regions alone",
            0,
        ),
    ],
)
def test_odd_graphs_are_written(
    tmp_path: Path, text: str, opset: int, way: str, left: int | None
) -> None:
    done, heard = simplified(tmp_path, text, opset=opset, foreign="test")
    assert done.verified_by == way
    assert ("verify.limited" in heard.codes) == (way != "float64")
    assert done.to_record()["verify"]["by"] == way
    assert (done.comparison is None) == (way == "regions alone")
    if left is not None:
        assert done.after.ops.get("BatchNormalization", 0) == left
    assert sealed(tmp_path / "out.onnx")
    assert all(len(text) < 300 for _, text in heard.warnings)


def test_what_only_onnxruntime_runs_is_compared_there(tmp_path: Path) -> None:
    text = f"{BATCH} => (float[n,4,5,6] y) {HELD} {{ {CONV} y = com.microsoft.QuickGelu(z) }}"
    done, heard = simplified(tmp_path, text, foreign="com.microsoft")
    assert done.verified_by == "ONNX Runtime alone"
    assert heard.codes == ["verify.limited"]
    assert done.comparison is not None
    assert done.after.ops == {"Conv": 1, "QuickGelu": 1}


def test_when_onnxsim_fails_the_graph_is_not_tidied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    text = f"{BATCH} => (float[n,4,5,6] y) {HELD} {{ {CONV} y = Relu(z) }}"
    done, heard = simplified(tmp_path, text)
    assert heard.codes == ["onnxsim.left_out"]
    assert "odd" in heard.warnings[0][1]
    assert done.after.ops == {"Conv": 1, "Relu": 1}


def test_every_way_finds_a_difference(tmp_path: Path) -> None:
    """A gate that cannot close proves nothing."""
    text = f"{BATCH} => (float[n,4,5,6] y) {HELD} {{ {CONV} y = Relu(z) }}"
    tails = {
        "float64": "",
        "float64 alone": "r = RandomNormalLike(y)",
        "ONNX Runtime alone": "r = com.microsoft.QuickGelu(y)",
    }
    for way, tail in tails.items():
        proto = parsed(text.replace(" }", f" {tail} }}"), foreign="com.microsoft", opset=17)
        found = find_witness(_loaded(tmp_path, proto))
        assert found.way == way
        assert found.check(_loaded(tmp_path, proto)) is not None
        wrong = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1.001)
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(wrong, "w"))
        with pytest.raises(CheckFailed):
            found.check(_loaded(tmp_path, proto))


def _loaded(folder: Path, proto: onnx.ModelProto) -> Any:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return load_onnx(folder / "m.onnx").model


def test_onnxruntime_is_no_witness_where_it_is_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{BATCH} => (float[n,4,5,6] y) {HELD} {{ {CONV} y = Relu(z) }}"
    monkeypatch.setattr(witness, "_NO_WITNESS", 1e-12)
    done, heard = simplified(tmp_path, text)
    assert done.verified_by == "float64 alone"
    assert "off" in heard.warnings[0][1]


def test_inputs_are_of_two_sizes_and_kinds(tmp_path: Path) -> None:
    text = (
        "(float[n,3,h,l] x, float[n,h] z, bool k, int64 i, uint8[2] u) => (float[n,3,h,l] y) "
        "{ y = Identity(x) }"
    )
    one, other = sized_feeds(_loaded(tmp_path, parsed(text)))
    assert one["x"].shape == (1, 3, 224, 224)
    assert other["x"].shape[0] == 3
    assert other["x"].shape != one["x"].shape[:1] + other["x"].shape[1:]
    assert len({other["x"].shape[2], other["x"].shape[3], 224}) == 3
    assert one["z"].shape == (1, 224)
    assert other["z"].shape == (3, other["x"].shape[2])
    assert (one["k"], other["k"]) == (True, False)
    assert (one["i"], other["i"]) == (1, 2)
    assert one["u"].dtype == np.uint8


# Models beyond what protobuf holds, the limit lowered.

CHAIN = """(float[n,3,5,6] x) => (float[n,16,5,6] y)
<float[64,3,3,3] w, float[64] g, float[64] b, float[64] m, float[64] v, float[16,64,1,1] u>
{ c = Conv<pads=[1,1,1,1]>(x, w) d = BatchNormalization(c, g, b, m, v) r = Relu(d)
  y = Conv(r, u) }"""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with in.onnx and its weights beside it, which must not go into one file."""
    monkeypatch.setattr(serialize, "_LARGEST_PROTOBUF", 5000)
    model = parsed(CHAIN, opset=17)
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=1000)  # fmt: skip
    return tmp_path


def test_a_large_model_has_its_weights_beside_it(large: Path) -> None:
    heard = Heard()
    options = SimplifyOptions(large / "in.onnx", large / "out.onnx")
    done = simplify(options, heard)
    assert not heard.warnings
    assert done.after.ops == {"Conv": 2, "Relu": 1}
    assert sorted(p.name for p in large.iterdir()) == [
        *("in.onnx", "out.onnx", "out.onnx.data", "w.bin")
    ]
    assert done.size_bytes == sum(
        (large / f"out.onnx{s}").stat().st_size for s in ("", ".data")
    )
    onnx.checker.check_model(large / "out.onnx", full_check=True)
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)}
    got, want = (
        np.asarray(
            ort.InferenceSession(large / n, providers=["CPUExecutionProvider"]).run(None, x)[0]
        )
        for n in ("out.onnx", "in.onnx")
    )
    assert np.allclose(got, want, rtol=1e-4, atol=1e-5)
    assert "w.bin" in done.metadata["vntools.source_data"]
    simplify(options, heard)  # over what is ours


def test_its_own_result_can_be_simplified_again(large: Path) -> None:
    simplify(SimplifyOptions(large / "in.onnx", large / "out.onnx"), Heard())
    again = simplify(SimplifyOptions(large / "out.onnx", large / "more.onnx"), Heard())
    assert again.after == again.before
    same = [(large / n).read_bytes() for n in ("out.onnx.data", "more.onnx.data")]
    assert same[0] == same[1]


def test_a_small_one_of_external_data_becomes_one_file(large: Path) -> None:
    serialize._LARGEST_PROTOBUF = 1 << 20  # undone with the fixture's
    simplify(SimplifyOptions(large / "in.onnx", large / "out.onnx"), Heard())
    assert sorted(p.name for p in large.iterdir()) == ["in.onnx", "out.onnx", "w.bin"]


@pytest.mark.parametrize("name", ["w.bin", "in.onnx"])
def test_no_input_is_written_over(large: Path, name: str) -> None:
    with pytest.raises(UsageFault):
        simplify(SimplifyOptions(large / "in.onnx", large / name, force=True), Heard())


def test_weights_beside_it_are_not_written_over_either(large: Path) -> None:
    model = onnx.load(large / "in.onnx")
    onnx.save(model, large / "in.onnx", save_as_external_data=True, size_threshold=1000,
              location="out.onnx.data")  # fmt: skip
    with pytest.raises(UsageFault):
        simplify(SimplifyOptions(large / "in.onnx", large / "out.onnx", force=True), Heard())


def test_what_does_not_hold_leaves_nothing(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CheckFailed("verify.mismatch", "no")

    monkeypatch.setattr(witness.Witness, "check", fail)
    with pytest.raises(CheckFailed):
        simplify(SimplifyOptions(large / "in.onnx", large / "out.onnx"), Heard())
    assert sorted(p.name for p in large.iterdir()) == ["in.onnx", "w.bin"]


def test_weights_that_are_cut_short_are_refused(large: Path) -> None:
    (large / "w.bin").write_bytes((large / "w.bin").read_bytes()[:-1])
    with pytest.raises(DataFault) as e:
        simplify(SimplifyOptions(large / "in.onnx", large / "out.onnx"), Heard())
    assert e.value.code == "onnx.external"
