"""Image files of strangers, and the transform of evaluation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.pictures import noise, picture
from vntools.base.errors import DataFault, IoFault, NoInput
from vntools.models.arch import Preprocessing
from vntools.models.images import evaluation_view, list_images, open_rgb, to_input

SIZES = [
    (256, 256), (255, 256), (257, 256), (500, 375), (375, 500), (333, 500), (499, 334),
    (31, 17), (17, 31), (640, 427), (1023, 767), (224, 224), (225, 223), (97, 1000),
    (1000, 97), (300, 299), (5, 3), (1, 1), (213, 641), (1, 20),
]  # fmt: skip
CROPS = [(224, 0.875), (224, 0.95), (224, 1.0), (32, 1.0), (33, 0.9), (64, 0.7), (65, 1.3)]


def published(
    image: Image.Image, size: int, ratio: float, *, longer: str = "integers"
) -> torch.Tensor:
    """Resize, CenterCrop, ToTensor and Normalize as torchvision documents them, over torch."""
    w, h = image.size
    resize = int(size / ratio)
    short, long = (w, h) if w <= h else (h, w)
    new_long = int(resize * long / short)
    if longer == "floats":
        new_long = int(long * (resize / short))
    new_w, new_h = (resize, new_long) if w <= h else (new_long, resize)
    resized = image.resize((new_w, new_h), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    h, w = pixels.shape[1:]
    if size > w or size > h:
        left, right = ((size - w) // 2, (size - w + 1) // 2) if size > w else (0, 0)
        top, bottom = ((size - h) // 2, (size - h + 1) // 2) if size > h else (0, 0)
        pixels = torch.nn.functional.pad(pixels, (left, right, top, bottom))
        h, w = pixels.shape[1:]
    top, left = round((h - size) / 2.0), round((w - size) / 2.0)
    scaled = pixels[:, top : top + size, left : left + size].to(torch.float32).div(255)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return scaled.sub(mean).div(std)


def ours(image: Image.Image, size: int, ratio: float) -> NDArray[np.float32]:
    used = Preprocessing(size, ratio)
    return to_input(np.asarray(evaluation_view(image, used))[None], used)[0]


@pytest.mark.parametrize(("size", "ratio"), CROPS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_transform_is_torchvisions_in_every_bit(
    width: int, height: int, size: int, ratio: float
) -> None:
    image = noise(width, height)
    want = published(image, size, ratio).numpy()
    got = ours(image, size, ratio)
    assert (got.dtype, got.shape) == (np.float32, (3, size, size))
    assert got.flags.c_contiguous
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_a_resize_by_a_rounded_scale_would_be_seen() -> None:
    different = 0
    for width in range(200, 400):
        image = Image.new("RGB", (width, 197))
        short = int(224 / 0.875)
        different += int(short * width / 197) != int(width * (short / 197))
        assert ours(image, 224, 0.875).shape == (3, 224, 224)
    assert different > 0
    width = next(w for w in range(198, 3000) if int(256 * w / 197) != int(w * (256 / 197)))
    image = noise(width, 197)
    assert not torch.equal(
        published(image, 224, 0.875), published(image, 224, 0.875, longer="floats")
    )
    assert np.array_equal(ours(image, 224, 0.875), published(image, 224, 0.875).numpy())


def test_one_step_of_rounding_would_be_seen() -> None:
    image, used = noise(256, 256), Preprocessing(224, 0.875)
    pixels = np.asarray(evaluation_view(image, used))[None].astype(np.float64)
    once = ((pixels / 255 - used.mean) / used.std).astype(np.float32)
    assert not np.array_equal(once[0].transpose(2, 0, 1), ours(image, 224, 0.875))


def test_72_flipped_bits_of_a_jpeg_cannot_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    noise(64, 64).save(path)
    whole, data = open_rgb(path), bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)
    assert open_rgb(path).size == whole.size
    assert open_rgb(path).tobytes() != whole.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_73_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    made = noise(20, 10).convert(mode)
    made.save(path)
    with Image.open(path) as image:
        want = image.convert("RGB")
    found = open_rgb(path)
    assert found.mode == "RGB"
    assert found.tobytes() == want.tobytes()


def test_73_a_palette_with_transparency(tmp_path: Path) -> None:
    made = noise(20, 10).convert("P")
    made.save(tmp_path / "x.png", transparency=bytes(range(256)))
    assert open_rgb(tmp_path / "x.png").tobytes() == made.convert("RGB").tobytes()


def test_74_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(20, 10).save(tmp_path / "x.jpg", exif=exif)
    assert open_rgb(tmp_path / "x.jpg").size == (20, 10)


def test_76_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    first, second = noise(20, 10, seed=1), noise(20, 10, seed=2)
    first.save(tmp_path / "x.png", save_all=True, append_images=[second], default_image=False)
    assert open_rgb(tmp_path / "x.png").tobytes() == first.tobytes()


def test_76_other_formats_are_skipped_and_counted(tmp_path: Path) -> None:
    for suffix in ("gif", "webp", "bmp", "tiff"):
        noise(8, 8).save(tmp_path / f"x.{suffix}")
    picture(tmp_path / "x.png")
    assert list_images(tmp_path).skipped == 4
    (tmp_path / "x.gif").rename(tmp_path / "gif.jpg")
    with pytest.raises(DataFault):
        open_rgb(tmp_path / "gif.jpg")


@pytest.mark.parametrize("resized", [(224, 0.001), (4000, 0.3)], ids=["77-crop", "77-size"])
def test_77_no_image_is_blown_up_without_end(resized: tuple[int, float]) -> None:
    with pytest.raises(DataFault, match="too large"):
        evaluation_view(Image.new("RGB", (20, 10)), Preprocessing(*resized))


def test_77_what_is_published_in_several_scans_is_no_bomb(tmp_path: Path) -> None:
    noise(900, 700).save(tmp_path / "x.jpg", progressive=True)
    content = (tmp_path / "x.jpg").read_bytes()
    assert content.count(b"\xff\xda") > 5
    assert open_rgb(tmp_path / "x.jpg").size == (900, 700)
    (tmp_path / "x.jpg").write_bytes(content + bytes([255, 218]) * 5000)  # a film behind it
    assert open_rgb(tmp_path / "x.jpg").size == (900, 700)


def test_81_only_regular_files_and_no_linked_folders(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "a" / "x.jpg")
    listing = list_images(tmp_path)
    assert listing.files == (tmp_path / "a" / "x.jpg", tmp_path / "linked.jpg")
    assert listing.skipped == 4
    with pytest.raises(DataFault):
        open_rgb(tmp_path / "pipe.jpg")  # and does not wait for a writer


def test_81_an_image_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(IoFault) as caught:
        open_rgb(tmp_path / "gone.jpg")
    assert (caught.value.code, caught.value.exit_status) == ("data.vanished", 74)


def test_84_names_of_any_bytes_in_their_order(tmp_path: Path) -> None:
    names = [b"B.png", b"a.png", b"\xc3\xa4.png", b"\xff.png"]
    for name in names:
        picture(tmp_path / "x.png").rename(tmp_path / os.fsdecode(name))
    found = [os.fsencode(f.name) for f in list_images(tmp_path).files]
    assert found == sorted(names)
    open_rgb(list_images(tmp_path).files[-1])


def test_84_no_image_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataFault, match=r"looked for \.jpg \.jpeg \.png, found 0") as caught:
        list_images(tmp_path, code="eval")
    assert (caught.value.code, caught.value.hint) == ("eval.empty", "")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "class").symlink_to(tmp_path)
    with pytest.raises(DataFault, match="found 0 and 3 other files") as caught:
        list_images(tmp_path)
    assert caught.value.hint == "links to folders are not followed"
    with pytest.raises(NoInput) as missing:
        list_images(tmp_path / "notes.txt", code="calib")
    assert (missing.value.code, missing.value.exit_status) == ("calib.missing", 66)
