"""Images: the digits, folders of classes, and what they go through."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vntools.base.errors import DataFault, NoInput
from vntools.models.arch import Preprocessing
from vntools.models.data import Images, digits, image_folder

PLAIN = Preprocessing(8, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(path: Path, *, colour: tuple[int, int, int] = (255, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), colour).save(path)


def folder(root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), each: int = 5) -> Path:
    for name in classes:
        for i in range(each):
            picture(root / name / f"{i}.png", colour=(40 * i, 0, 0))
    return root


def test_the_digits_are_split_the_same_way_every_time() -> None:
    (training, test), (again, _) = digits(), digits()
    assert (len(training), len(test)) == (1438, 359)
    assert training.labels.tolist() == again.labels.tolist()
    assert set(test.labels.tolist()) == set(range(10))
    assert training.classes == tuple("0123456789")
    batch = test.batch([0, 5], test.preprocessing)
    assert (batch.shape, batch.dtype) == ((2, 3, 32, 32), np.float32)
    assert np.array_equal(batch, test.batch([0, 5], test.preprocessing))
    assert not np.array_equal(batch[0], batch[1])
    assert np.array_equal(batch[:, 0], batch[:, 2])


def test_no_digit_is_in_both_parts() -> None:
    pixels = [{part.openers[i]().tobytes() for i in range(len(part))} for part in digits()]
    assert not pixels[0] & pixels[1]


def test_a_folder_per_class(tmp_path: Path) -> None:
    training, test = image_folder(folder(tmp_path))
    assert (len(training), len(test)) == (8, 2)
    assert training.classes == ("cat", "dog")
    assert training.preprocessing == Preprocessing(224, 0.875)
    assert sorted([*training.labels, *test.labels]) == [0] * 5 + [1] * 5


def test_train_and_val_folders(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val", each=2)
    training, test = image_folder(tmp_path)
    assert (len(training), len(test)) == (10, 4)
    picture(tmp_path / "val" / "eel" / "0.jpg")
    with pytest.raises(DataFault) as caught:
        image_folder(tmp_path)
    assert caught.value.code == "data.classes"


def test_only_jpeg_and_png_files_count(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "folder.png").mkdir()
    picture(tmp_path / "dog" / "more.JPG")
    training, test = image_folder(tmp_path)
    assert len(training) + len(test) == 11


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoInput):
        image_folder(tmp_path / "absent")
    with pytest.raises(DataFault, match="found 0"):
        image_folder(tmp_path)
    folder(tmp_path, classes=("cat",))
    with pytest.raises(DataFault, match="1 class folders"):
        image_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataFault, match="no image in dog"):
        image_folder(tmp_path)


def test_folders_are_those_that_eval_takes(tmp_path: Path) -> None:
    """Any depth below a class; no loose image, and no class behind a link."""
    folder(tmp_path / "all", classes=("b", "a.b", "a"))
    picture(tmp_path / "all" / "a" / "more" / "x.png")
    training, test = image_folder(tmp_path / "all")
    assert training.classes == ("a", "a.b", "b")
    assert np.bincount([*training.labels, *test.labels]).tolist() == [6, 5, 5]
    picture(tmp_path / "all" / "x.png")
    with pytest.raises(DataFault, match="no class folder") as caught:
        image_folder(tmp_path / "all")
    assert caught.value.code == "data.classes"
    (tmp_path / "all" / "x.png").unlink()
    (tmp_path / "all" / "c").symlink_to(tmp_path / "all" / "a")
    with pytest.raises(DataFault, match="links to folders are not followed") as caught:
        image_folder(tmp_path / "all")
    assert caught.value.code == "data.classes"


def one(path: Path) -> Images:
    """All images of a folder whose class ``cat`` holds ``path``."""
    folder(path.parent.parent, classes=("dog",), each=1)
    training, test = image_folder(path.parent.parent)
    return training if len(training) else test


@pytest.mark.parametrize(
    "content", [b"", b"%!PS-Adobe", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_a_damaged_image_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat" / "bad.png"
    path.parent.mkdir()
    path.write_bytes(content)
    images = one(path)
    with pytest.raises(DataFault) as caught:
        images.batch(range(len(images)), PLAIN)
    assert (caught.value.code, caught.value.path) == ("data.image", str(path))


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    path = tmp_path / "cat" / "bad.jpg"
    path.parent.mkdir()
    path.write_bytes(whole.getvalue()[:1500])
    images = one(path)
    with pytest.raises(DataFault, match="cannot be read"):
        images.batch(range(len(images)), PLAIN)


def test_an_image_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = image_folder(folder(tmp_path))
    monkeypatch.setattr("vntools.models.images._MAX_PIXELS", 100)
    with pytest.raises(DataFault, match="50 megapixels"):
        images.batch([0], PLAIN)


def of(image: Image.Image) -> Images:
    return Images([image.copy], np.zeros(1, np.int64), ("only",), PLAIN)


def test_values_are_scaled_and_normalised() -> None:
    used = Preprocessing(8, 1.0, mean=(0.5, 0.0, 0.0), std=(0.25, 1.0, 2.0))
    batch = of(Image.new("RGB", (8, 8), (255, 51, 0))).batch([0], used)
    np.testing.assert_allclose(batch[0, :, 3, 4], (2.0, 0.2, 0.0), rtol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 20), (8, 8), (5, 3)])
def test_the_centre_is_cropped(width: int, height: int) -> None:
    ramp = np.add.outer(np.zeros(height), np.linspace(0, 255, width)).astype(np.uint8)
    image = Image.fromarray(ramp).convert("RGB")
    batch = of(image).batch(
        [0], Preprocessing(8, 0.5, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    )
    assert batch.shape == (1, 3, 8, 8)
    assert abs(float(batch.mean())) < 0.02
    seen = float(batch.max() - batch.min())
    assert seen == pytest.approx(0.5 * min(width, height) / width * 7 / 8, abs=0.1)


def test_augmented_views_follow_the_generator() -> None:
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    views = [
        of(image).batch([0], PLAIN, augment=np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
