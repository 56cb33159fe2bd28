"""Batches of images and of arrays: what is in them, what is left out, and what is refused."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pictures import noise, picture
from vntools.base.errors import DataFault, VntoolsError
from vntools.cli._shared import Console
from vntools.export.interface import Interface, Normalization
from vntools.models.arch import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vntools.models.images import evaluation_view, open_rgb, to_input
from vntools.pipeline import image_feeds
from vntools.pipeline.image_feeds import Feeds, ImageFeeds, calibration_feeds
from vntools.pipeline.image_input import ImageInput
from vntools.pipeline.listener import Mute
from vntools.runtime.base import TensorSpec

FLOAT = TensorSpec("input", ("batch", 3, 32, 32), "float32")
USED = Preprocessing(32, 0.875)


def said(interface: Interface | None = None, **changes: object) -> dict[str, str]:
    """Metadata as export writes it, but for ``changes``."""
    record: dict[str, Any] = {
        "image_size": 32,
        "crop_ratio": 0.875,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bicubic",
        **(interface or Interface()).to_record(),
    }
    return {"vntools.preprocessing": json.dumps(record | changes)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """50 images in five folders."""
    for number in range(50):
        path = tmp_path / "images" / f"c{number // 10}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40 + number, 36, seed=number).save(path)
    return tmp_path / "images"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def feeds_of(path: Path, spec: TensorSpec = FLOAT, **options: Any) -> Feeds:
    options = {"metadata": said(), "batch": 8, "limit": None, "listener": Mute()} | options
    return calibration_feeds(path, (spec,), options.pop("metadata"), **options)


def want(spec: TensorSpec = FLOAT, metadata: Mapping[str, str] | None = None) -> ImageInput:
    return ImageInput.of((spec,), said() if metadata is None else metadata, Mute())


def error_of(call: Any) -> VntoolsError:
    with pytest.raises(VntoolsError) as caught:
        call()
    return caught.value


def test_batches_hold_the_transformed_images_in_one_order(folder: Path) -> None:
    feeds = feeds_of(folder)
    first, second = ([feed["input"] for feed in feeds] for _ in range(2))
    assert [len(x) for x in first] == [8] * 6 + [2]
    assert feeds.images == 50
    views = [np.asarray(evaluation_view(open_rgb(f), USED)) for f in files(folder)]
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(np.concatenate(first), to_input(np.stack(views), USED)[order])
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_limit_is_spread_over_the_folders(folder: Path) -> None:
    (found,) = feeds_of(folder, limit=5)
    views = [np.asarray(evaluation_view(open_rgb(f), USED)) for f in files(folder)[::10]]
    order = np.random.default_rng(0).permutation(5)
    assert np.array_equal(found["input"], to_input(np.stack(views), USED)[order])
    feeds = feeds_of(folder, limit=1000)
    assert sum(len(feed["input"]) for feed in feeds) == 50


def test_a_fixed_batch_is_filled_up(folder: Path) -> None:
    fixed = TensorSpec("input", (16, 3, 32, 32), "float32")
    feeds = feeds_of(folder, fixed, batch=3)
    found = [feed["input"] for feed in feeds]
    assert [len(x) for x in found] == [16] * 4
    assert feeds.images == 50
    assert all(np.array_equal(found[-1][1], x) for x in found[-1][2:])
    assert not np.array_equal(found[-1][0], found[-1][1])


def test_memory_is_bounded_and_decoding_runs_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    lock = threading.Lock()

    def counting(path: Path) -> Image.Image:
        with lock:
            opened.append(path)
        return open_rgb(path)

    monkeypatch.setattr(image_feeds, "open_rgb", counting)
    batches = iter(ImageFeeds(files(folder), [want()], batch=4, on_bad=print, workers=2))
    most = 0
    for taken, _ in enumerate(batches, start=1):
        most = max(most, len(opened) - 4 * taken)
    assert len(opened) == 50
    assert 0 < most <= 4 + 2


def test_the_order_does_not_depend_on_who_is_done_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()

    def first_waits(path: Path) -> Image.Image:
        if path.name == "00.png":
            assert second.wait(10)
        elif path.name == "01.png":
            second.set()
        return open_rgb(path)

    monkeypatch.setattr(image_feeds, "open_rgb", first_waits)
    batches = ImageFeeds(files(folder), [want()], batch=4, on_bad=print, workers=2)
    assert [i for b in batches for i in b.indices] == list(range(50))


def test_decoding_ends_with_the_iteration(folder: Path) -> None:
    batches = iter(ImageFeeds(files(folder), [want()], batch=2, on_bad=print, workers=2))
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(10)
            assert not thread.is_alive()


def test_several_inputs_from_one_decoding(folder: Path) -> None:
    raw = TensorSpec("pixels", ("n", 32, 32, 3), "uint8")
    inside = Interface(Normalization(IMAGENET_MEAN, IMAGENET_STD), "uint8", "nhwc")
    wants = [want(), want(raw, said(inside))]
    batch = next(iter(ImageFeeds(files(folder), wants, batch=3, on_bad=print)))
    x, pixels = batch.feeds[0]["input"], batch.feeds[1]["pixels"]
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32, 3), np.uint8)
    assert np.array_equal(to_input(pixels, USED), x)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_values_of_0_to_1(dtype: str, layout: str, folder: Path) -> None:
    inside = Interface(Normalization(IMAGENET_MEAN, IMAGENET_STD), dtype, layout)
    sample = (3, 32, 32) if layout == "nchw" else (32, 32, 3)
    kind = {"fp32": "float32", "fp16": "float16"}[dtype]
    spec = TensorSpec("input", ("batch", *sample), kind)
    ((feed),) = feeds_of(folder, spec, metadata=said(inside), batch=50)
    assert str(feed["input"].dtype) == kind
    assert feed["input"].shape == (50, *sample)
    found = inside.network_input(feed["input"])
    ((normal),) = feeds_of(folder, batch=50)
    np.testing.assert_allclose(found, normal["input"], atol=1e-6 if dtype == "fp32" else 2e-3)


def test_without_metadata_the_usual_is_taken_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_size = TensorSpec("x", ("n", 3, "h", "w"), "float32")
    made = ImageInput.of((open_size,), {}, Console())
    assert made.preprocessing == Preprocessing(224, 0.875)
    assert "no metadata on preprocessing; taking bicubic, crop ratio 0.875, 224x224 RGB" in (
        capsys.readouterr().err
    )
    assert ImageInput.of((FLOAT,), {}, Mute()).preprocessing.image_size == 32
    raw = TensorSpec("x", (1, 3, 64, 64), "uint8")
    assert ImageInput.of((raw,), {}, Mute()).values == "0..255"
    assert ImageInput.of((FLOAT,), {}, Mute(), crop_ratio=0.5).preprocessing.crop_ratio == 0.5


@pytest.mark.parametrize(
    "specs",
    [
        (),
        (FLOAT, FLOAT),
        (TensorSpec("x", ("n", 3), "float32"),),
        (TensorSpec("x", ("n", 3, 8, 8), "int64"),),
        (TensorSpec("x", ("n", 3, 8, 9), "float32"),),
        (TensorSpec("x", ("n", 1, 8, 8), "float32"),),
        (TensorSpec("x", ("n", 8, 8, 3), "float32"),),
    ],
)
def test_inputs_that_take_no_images(specs: tuple[TensorSpec, ...]) -> None:
    assert error_of(lambda: ImageInput.of(specs, {}, Mute())).code == "data.input"


@pytest.mark.parametrize(
    "metadata",
    [
        {"vntools.preprocessing": text}
        for text in ("", "[]", "{}", "null", "[" * 100_000)
    ]
    + [
        said(image_size=0), said(image_size=10**6), said(image_size="large"),
        said(crop_ratio=0), said(crop_ratio=float("nan")), said(crop_ratio=1e-9),
        said(mean=[0, 0]), said(std=[0, 1, 1]), said(std=[float("inf")] * 3),
        said(interpolation="magic"), said(layout="chwn"), said(values="0..7"),
        said(layout=[]),
    ],
)  # fmt: skip
def test_metadata_of_a_stranger(metadata: dict[str, str]) -> None:
    error = error_of(lambda: want(FLOAT, metadata))
    assert (error.code, error.exit_status) == ("data.preprocessing", 65)


def test_bytes_cannot_be_normalised_on_the_host() -> None:
    raw = TensorSpec("input", ("n", 3, 32, 32), "uint8")
    assert error_of(lambda: want(raw, said())).code == "data.preprocessing"


@pytest.mark.parametrize(("count", "few"), [(31, True), (32, False)])
def test_70_few_images_are_warned_of(
    count: int, few: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feeds_of(folder, limit=count, listener=Console())
    assert ("warning[calib.few]: 31 images are few" in capsys.readouterr().err) == few


def test_71_a_bad_image_in_a_hundred_is_left_out_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        picture(tmp_path / f"{number:03}.png", red=number)
    (tmp_path / "050.png").write_bytes(b"")
    feeds = feeds_of(tmp_path, batch=33, listener=Console())
    for _ in range(2):
        assert [len(feed["input"]) for feed in feeds] == [33] * 3
        assert feeds.images == 99
    found = capsys.readouterr().err
    assert found.count("warning[calib.bad_images]: 1 of 100 images left out") == 1
    (tmp_path / "051.png").write_bytes(b"")
    assert error_of(lambda: list(feeds)).code == "calib.bad_images"


def arrays(count: int = 20, dtype: str = "float32") -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(0).standard_normal((count, 3, 32, 32))
    return drawn.astype(dtype)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["input", "images"])
def test_npz_batches(save: Any, name: str, tmp_path: Path) -> None:
    save(tmp_path / "x.npz", **{name: arrays()})
    feeds = feeds_of(tmp_path / "x.npz")
    for _ in range(2):
        found = [feed["input"] for feed in feeds]
        assert [len(x) for x in found] == [8, 8, 4]
        assert np.array_equal(np.concatenate(found), arrays())
        assert feeds.images == 20
    found = [feed["input"] for feed in feeds_of(tmp_path / "x.npz", limit=5)]
    assert np.array_equal(found[0], arrays()[:5])


def test_npz_of_several_inputs_and_a_fixed_batch(tmp_path: Path) -> None:
    specs = (
        TensorSpec("a", (4, 3, 32, 32), "float32"), TensorSpec("b", (4, "k"), "int64"),
    )  # fmt: skip
    numbers = np.arange(12).reshape(6, 2)
    np.savez(tmp_path / "x.npz", b=numbers, a=arrays(6))
    feeds = calibration_feeds(
        tmp_path / "x.npz", specs, {}, batch=9, limit=None, listener=Mute()
    )
    first, second = feeds
    assert np.array_equal(first["b"], numbers[:4])
    assert np.array_equal(second["b"], numbers[[4, 5, 5, 5]])
    assert second["a"].shape == (4, 3, 32, 32)


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def _npy(array: Any, **changes: object) -> bytes:
    """An array's file, its header changed."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"no zip",
        lambda: _zip(),
        lambda: _zip(input=b""),
        lambda: _zip(input=b"\x93NUMPY\x01\x00"),
        lambda: _zip(input=_npy(arrays(), shape=(30, 3, 32, 32))),
        lambda: _zip(input=_npy(arrays(), shape=(1 << 50, 3, 32, 32))),
        lambda: _zip(input=_npy(arrays(), shape=(0, 3, 32, 32))),
        lambda: _zip(input=_npy(arrays(), fortran_order=True)),
        lambda: _zip(input=_npy(arrays(), descr="|O")),
        lambda: _zip(input=_npy(arrays(dtype="float64"))),
        lambda: _zip(input=_npy(arrays().astype(">f4"))),
        lambda: _zip(input=_npy(arrays()[:, :1])),
        lambda: _zip(input=_npy(arrays()[0])),
        lambda: _zip(x=_npy(arrays()), y=_npy(arrays())),
        lambda: _zip(input=_npy(arrays()))[:-2000],
    ],
)
def test_npz_of_a_stranger(make: Any, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(make())
    error = error_of(lambda: list(feeds_of(tmp_path / "x.npz")))
    assert (error.code, error.exit_status) == ("calib.npz", 65)


def test_npz_that_ends_early(tmp_path: Path) -> None:
    cut = _npy(arrays(), shape=(30, 3, 32, 32))
    (tmp_path / "x.npz").write_bytes(_zip(input=cut))
    batches = iter(feeds_of(tmp_path / "x.npz"))
    assert [len(next(batches)["input"]) for _ in range(2)] == [8, 8]
    assert "input.npy ends early" in error_of(lambda: next(batches)).line()


def test_npz_is_no_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input=np.array([{}], object), allow_pickle=True)
    assert isinstance(error_of(lambda: feeds_of(tmp_path / "x.npz")), DataFault)
