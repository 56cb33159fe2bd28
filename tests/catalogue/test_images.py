"""Rows 66 to 85: weights and activations out of range, images of strangers, and labels.

Every row is a call of the command line in this process; TensorRT-RTX builds the plans. What
the pixels become is tested in ``tests/models/test_images.py``, as rows 72 to 76 are there too.
The bad images are held a second time in a process with little memory that may start none.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.catalogue.frame import Row, Words, by_number, hold
from tests.graphs import parsed
from tests.pictures import BAD, noise, picture
from vntools.export.interface import Interface
from vntools.models.arch import IMAGENET_MEAN, IMAGENET_STD
from vntools.models.images import Listing, list_images
from vntools.pipeline import image_feeds, labels

CLASSES = 10
PLAN = ("net.plan", "net.plan.json")
CONVOLUTION = """(float[n,3,8,8] x) => (float[n,10] y)
<float[16,3,1,1] W, float[16] B, float[10,16] H>
{ [conv] a = Conv(x, W, B)
  [relu] r = Relu(a)
  [pool] p = GlobalAveragePool(r)
  [flat] f = Flatten(p)
  [head] y = Gemm<transB=1>(f, H) }"""


def red(number: int) -> int:
    """How red class ``number`` is."""
    return 20 * number + 10


def saved(path: Path, text: str, *, values: str = "normalized", **weights: Any) -> Path:
    """A graph for images of 8x8, with what export says of them."""
    said = {
        "image_size": 8, "crop_ratio": 1.0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
        "interpolation": "bicubic", **Interface().to_record(), "values": values,
    }  # fmt: skip
    model = parsed(text, **weights)
    onnx.helper.set_model_props(model, {"vntools.preprocessing": json.dumps(said)})
    path.write_bytes(model.SerializeToString())
    return path


def classifier(folder: Path) -> Path:
    """A network that tells classes by how red the upper half of an image is."""
    centres = (np.array([red(k) for k in range(CLASSES)]) / 255 - IMAGENET_MEAN[0]) / (
        IMAGENET_STD[0]
    )
    weight = np.zeros((3, 8, 8, CLASSES))
    weight[0, :4] = centres / 16
    text = (
        "(float[n,3,8,8] x) => (float[n,10] y) <float[192,10] W, float[10] B> "
        "{ f = Flatten(x) y = Gemm(f, W, B) }"
    )
    w = weight.reshape(192, CLASSES)
    return saved(folder / "net.onnx", text, W=w, B=-(centres**2))


def class_folders(folder: Path, *, wrong: int = 0) -> Path:
    """An image in a folder for each class; ``wrong`` of them are of class 9."""
    for k in range(CLASSES):
        picture(folder / "val" / f"n{k}" / "0.png", red=red(9 if k < wrong else k))
    return folder / "val"


def evaluating(
    prepare: Callable[[Path], object], *words: object, wrong: int = 0
) -> Callable[[Path], Words]:
    """``vntools eval`` of images in class folders that ``prepare`` has changed."""

    def make(folder: Path) -> Words:
        data = class_folders(folder, wrong=wrong)
        prepare(data)
        more = [folder / w if isinstance(w, Path) else w for w in words]
        net = classifier(folder)
        return ("eval", "--onnx", net, "--data", data, "--device", "cpu", *more)

    return make


def verifying(prepare: Callable[[Path], object]) -> Callable[[Path], Words]:
    """``vntools verify`` of two files that are alike, on such images."""

    def make(folder: Path) -> Words:
        data = class_folders(folder)
        prepare(data)
        nets = [classifier(folder).rename(folder / f"{i}.onnx") for i in range(2)]
        return ("verify", nets[0], "--against", nets[1], "--data", data, "--device", "cpu")

    return make


def calibrating(
    prepare: Callable[[Path], object],
    *words: object,
    count: int = 40,
    values: str = "normalized",
    **weights: Any,
) -> Callable[[Path], Words]:
    """``vntools build-engine --int8`` with a folder of images that ``prepare`` has changed."""

    def make(folder: Path) -> Words:
        for i in range(count):
            (folder / "calib").mkdir(exist_ok=True)
            noise(9, 9, seed=i).save(folder / "calib" / f"{i:03}.png")
        prepare(folder / "calib")
        net = saved(folder / "net.onnx", CONVOLUTION, values=values, **weights)
        return ("build-engine", net, "--int8", "--calib", folder / "calib", *words)

    return make


def typing(*words: object, **weights: Any) -> Callable[[Path], Words]:
    """``vntools build-engine`` of a graph with such weights."""
    return lambda folder: (
        "build-engine", saved(folder / "net.onnx", CONVOLUTION, **weights), *words,
    )  # fmt: skip


def nothing(_: Path) -> None:
    pass


def put(name: str, content: bytes) -> Callable[[Path], object]:
    """A file of the folder."""
    return lambda folder: (folder / name).write_bytes(content)


def bad(key: str, *, among: str = "n4") -> Callable[[Path], object]:
    """One of the bad images, in a class folder or in the folder itself."""
    name, make = BAD[key]
    return lambda folder: (folder / among / name).write_bytes(make())


def no_image(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.txt").touch()


def emptied(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")


def modes(data: Path) -> None:
    """Images of other modes, of the red of their class."""
    for k, mode in enumerate(("1", "L", "LA", "P", "RGBA", "CMYK")):
        colour = red(k) if mode != "1" else 0
        path = data / f"n{k}" / ("x.jpg" if mode == "CMYK" else "x.png")
        Image.new("RGB", (16, 16), (colour, colour, colour)).convert(mode).save(path)


def two_halves(upper: int, lower: int) -> Image.Image:
    made = Image.new("RGB", (32, 32), (red(upper), 0, 0))
    made.paste((red(lower), 0, 0), (0, 16, 32, 32))
    return made


def upside_down(data: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    two_halves(2, 7).save(data / "n2" / "x.jpg", exif=exif, quality=95)


def flipped_bit(data: Path) -> None:
    path = data / "n3" / "x.jpg"
    noise(64, 64).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


def animation(data: Path) -> None:
    first, second = (Image.new("RGB", (16, 16), (red(k), 0, 0)) for k in (5, 8))
    first.save(data / "n5" / "x.png", save_all=True, append_images=[second])


def other_formats(data: Path) -> None:
    for suffix in ("gif", "webp", "bmp", "tiff"):
        noise(8, 8).save(data / "n0" / f"x.{suffix}")


def disguised(data: Path) -> None:
    noise(8, 8).save(data / "n0" / "x.gif")
    (data / "n0" / "x.gif").rename(data / "n0" / "x.jpg")


def no_regular_files(folder: Path) -> None:
    """A pipe, links that lead nowhere and round, a folder: each named as an image is."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "lost.jpg").symlink_to(folder / "nowhere")
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "up").symlink_to(folder)


def link_for_a_class(data: Path) -> None:
    (data / "n9").rename(data.parent / "n9")
    (data / "n9").symlink_to(data.parent / "n9")


def training(folder: Path) -> Words:
    data = class_folders(folder)
    link_for_a_class(data)
    return ("train", "--data", data, "--out", folder / "net.pth")


def black(folder: Path) -> None:
    for path in folder.glob("*.png"):
        Image.new("RGB", (9, 9)).save(path)


def arrays(value: float) -> Callable[[Path], Words]:
    """Calibration with arrays of one value."""

    def make(folder: Path) -> Words:
        np.savez(folder / "x.npz", x=np.full((40, 3, 8, 8), value, np.float32))
        net = saved(folder / "net.onnx", CONVOLUTION)
        return ("build-engine", net, "--int8", "--calib", folder / "x.npz")

    return make


def nine_classes(data: Path) -> None:
    (data / "n2" / "0.png").unlink()


def mapped(data: Path) -> None:
    nine_classes(data)
    numbers = {f"n{k}": k for k in range(CLASSES)}
    (data.parent / "map.json").write_text(json.dumps(numbers))


def names_of_any_bytes(data: Path) -> None:
    """Classes whose numbers are the order of their names' bytes."""
    names = b"A Z a b z \x7f \xc3\xa4 \xe4\xb8\xad \xfe \xff".split()
    for k, name in enumerate(names):
        (data / f"n{k}").rename(data / os.fsdecode(name))


def labelled_nine(folder: Path) -> Words:
    nine_classes(class_folders(folder))
    words = ("--max-drop", 1, "--eval-data", folder / "val")
    return (*calibrating(nothing)(folder), *words)


ONES = np.ones((16, 3, 1, 1))
SMALL = ONES.copy()
SMALL[0, :, 0, 0] = (1e-6, 2e-6, 1e-9)
ALL = r"top-1 +100.00 % \({0} of {0}\)"
STEEP: dict[str, Any] = {"W": 6e4 * ONES, "H": np.full((10, 16), 1e-4)}

ROWS = [
    Row(66, "fp16.overflow", 65, typing("--fp16", W=9.1e4 * ONES),
        says=r"conv \(largest 9.1e\+04\).*--fp32-layers"),
    Row(66, "fp16.overflow", 65, calibrating(nothing, H=np.full((10, 16), 9.1e4)),
        says="head .*--fp32-layers", case="beside-int8"),
    Row(66, "bf16.overflow", 65, typing("--bf16", W=3.4e38 * ONES),
        says="conv .*--fp32-layers"),
    Row(67, "", 0, typing("--fp16", W=SMALL), files="written", outputs=PLAN,
        says="3 weights lie below fp16's normal range and lose bits, 1 of them become zero"),
    Row(67, "verify.mismatch", 1, typing("--fp16", W=4.5e-8 * ONES, B=np.zeros(16)),
        case="all-of-them"),
    Row(68, "verify.nonfinite", 1, typing("--fp16", **STEEP),
        says="conv is the first whose values leave.*--fp32-layers 'conv'"),
    Row(68, "verify.nonfinite", 1,
        calibrating(nothing, "--int8-head", "--fp16-layers", "conv", **STEEP),
        says="conv is the first whose values leave.*--fp32-layers 'conv'", case="beside-int8"),
    Row(69, "calib.missing", 66, lambda f: (*typing("--int8")(f), "--calib", f / "absent")),
    Row(69, "calib.missing", 66, lambda f: (*typing("--int8")(f), "--calib", f / "net.onnx"),
        case="a-file"),
    Row(69, "calib.empty", 65, calibrating(no_image, count=0),
        says=r"looked for .jpg .jpeg .png, found 0 and 1 other files"),
    Row(70, "calib.few", 0, calibrating(nothing, count=31), files="written", outputs=PLAN,
        says="31 images are few"),
    Row(70, "calib.bad_images", 65, calibrating(emptied, count=3), case="none-usable"),
    Row(71, "calib.bad_images", 0, calibrating(put("000.png", b""), count=100),
        files="written", outputs=PLAN, says="1 of 100 images left out, .*000.png"),
    Row(71, "data.bad_images", 0, verifying(bad("71-empty")), prints="10 samples",
        says="1 of 11 images left out, .*x.jpg", case="verify"),
    Row(71, "verify.empty", 1, verifying(emptied)),
    Row(71, "eval.empty", 65, evaluating(emptied, "--skip-bad"), case="all-of-them"),
    Row(72, "", 0, evaluating(flipped_bit), prints="11 found, 0 bad, 11 evaluated"),
    Row(73, "", 0, evaluating(modes), prints=ALL.format(16)),
    Row(74, "", 0, evaluating(upside_down), prints=ALL.format(11)),
    Row(76, "", 0, evaluating(animation), prints=ALL.format(11),
        case="first-frame"),
    Row(76, "", 0, evaluating(other_formats), prints="10 found, .* 4 other files skipped"),
    Row(76, "data.image", 65, evaluating(disguised), says="x.jpg", case="gif-called-jpg"),
    Row(81, "", 0, evaluating(no_regular_files), prints="10 found, 0 bad.* 4 other files",
        says=": 4 other files are skipped, 1 of them links to folders"),
    Row(81, "", 0, calibrating(no_regular_files), files="written", outputs=PLAN,
        says=": 4 other files are skipped, 1 of them links to folders", case="calib"),
    Row(81, "eval.classes", 65, evaluating(link_for_a_class), says="9 class folders, 10 out"),
    Row(81, "data.classes", 65, training, says="links to folders are not followed"),
    Row(82, "calib.range", 65, calibrating(black, values="0..1"),
        says="zero in all 40 images: x;"),
    Row(82, "calib.range", 65, arrays(0), says="zero in all 40 images: x;", case="arrays"),
    Row(82, "calib.range", 65, arrays(np.nan), says="NaN or infinite in images 1 to 8: x;",
        case="nan"),
    Row(83, "eval.classes", 65, evaluating(nine_classes),
        says="9 class folders, 10 outputs; --class-map"),
    Row(83, "eval.classes", 65, labelled_nine, says="9 class folders", case="budget"),
    Row(83, "", 0, evaluating(mapped, "--class-map", Path("map.json")),
        prints=ALL.format(9), case="class-map"),
    Row(84, "eval.empty", 65, evaluating(lambda d: [p.unlink() for p in d.rglob("*.png")]),
        says="looked for .jpg .jpeg .png, found 0"),
    Row(84, "", 0, evaluating(names_of_any_bytes), prints=ALL.format(10)),
    Row(85, "eval.below", 1, evaluating(nothing, "--min-top1", 80.1, wrong=2),
        prints=r"top-1 +80.00 % \(8 of 10\)"),
    Row(85, "", 0, evaluating(nothing, "--min-top1", 80, wrong=2),
        prints=r"top-1 +80.00 % \(8 of 10\)", case="just-enough"),
]  # fmt: skip

for key, (name, _) in BAD.items():
    number, _, what = key.partition("-")
    ROWS.extend([
        Row(int(number), "data.image", 65, evaluating(bad(key)), case=what,
            says=rf"{name}'.*--skip-bad"),
        Row(int(number), "", 0, evaluating(bad(key), "--skip-bad"), case=f"{what}-skipped",
            prints=f"(?s)11 found, 1 bad, 10 eval.*{ALL.format(10)}"),
        Row(int(number), "calib.bad_images", 65, calibrating(bad(key, among="")), case=what,
            says=rf"of 41 images more than 1 % cannot be used, the first is .*{name}"),
    ])  # fmt: skip


@by_number(ROWS)
def test_a_row(row: Row, tmp_path: Path) -> None:
    done = hold(row, tmp_path)
    assert re.search(row.prints, done.stdout), done.stdout


def test_an_open_size_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    def make(folder: Path) -> Words:
        words = calibrating(emptied)(folder)
        saved(folder / "net.onnx", CONVOLUTION.replace("8,8] x", "h,w] x"))
        return words

    row = Row(53, "onnx.shape", 65, make, says="only the batch may be open")
    hold(row, tmp_path)


GONE = [
    Row(81, "data.vanished", 74, evaluating(nothing, "--skip-bad"), says="gone.png'"),
    Row(81, "data.vanished", 74, calibrating(nothing), says="gone.png'", case="calib"),
]


@by_number(GONE)
def test_a_file_that_is_gone_when_its_turn_comes(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(folder: Path, *, code: str) -> Listing:
        found = list_images(folder, code=code)
        gone = found.files[-1].with_name("gone.png")
        return replace(found, files=(*found.files, gone))

    for module in (labels, image_feeds):
        monkeypatch.setattr(module, "list_images", listed)
    hold(row, tmp_path)


_STRICT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
forbidden = ("subprocess", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket")
def hook(event, args):
    if event.startswith(forbidden):
        sys.stderr.write(f"hook: {event}\\n")
        raise RuntimeError(event)
from vntools.cli import vntools
sys.addaudithook(hook)
"""


def strictly(code: str, *words: object) -> Any:
    """Run code in a process of 2 GiB of addresses that may start no other."""
    return subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", _STRICT + code, *map(str, words)],
        check=False, capture_output=True, text=True, timeout=100,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


REASONS = {
    "71": "cannot be read as JPEG or PNG",
    "75": "a PNG of 16 bits a channel",
    "77": "has more than 50 megapixels|(has too many scans|holds too little) for its size",
    "78": "is 1x60000 pixels, too long",
    "79": "cannot be read as JPEG or PNG",
    "80": "cannot be read as JPEG or PNG",
}


def test_all_bad_images_at_once_in_little_memory(tmp_path: Path) -> None:
    data = class_folders(tmp_path)
    no_regular_files(data)
    for key, (name, make) in BAD.items():
        (data / "n4" / f"{key}-{name}").write_bytes(make())
    words = ("eval", "--onnx", classifier(tmp_path), "--data", data, "--skip-bad", "--json")
    done = strictly(
        "vntools.main()", *words, "--device", "cpu", "--threads", 1, "--workers", 2
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == {
        "found": len(BAD) + 10, "bad": len(BAD), "evaluated": 10, "skipped": 4
    }  # fmt: skip
    assert found["top1"] == 10
    assert "hook" not in done.stderr
    for left in found["bad"]:
        assert re.fullmatch(REASONS[Path(left["path"]).name[:2]], left["message"]), left


def test_the_process_is_strict() -> None:
    assert "MemoryError" in strictly("bytearray(1 << 31)").stderr
    assert "hook: subprocess" in strictly("import os; os.popen('true')").stderr
