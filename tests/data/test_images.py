"""Images: users' folders in every accepted form, what reading states, what it refuses, built-in and published sets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.images import CATALOGUE, CatalogueImages, Digits, ImageFiles, Images, from_arrays, list_files


def picture(value: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Image.Image:
    """Width x height of `size`, with a gradient so that turning and mirroring show."""
    w, h = size
    grey = (np.arange(w * h).reshape(h, w) * 3 + value) % 256
    return Image.fromarray(grey.astype(np.uint8)).convert(mode)


def put(path: Path, image: Image.Image, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for c, name in enumerate(("dog", "cat")):
        for i in range(3):
            put(root / name / f"{i}.png", picture(40 * c + i))
    return root


# -- forms ---------------------------------------------------------------------------------------------------------------
def test_class_folders(classes: Path) -> None:
    data = open_data(str(classes))
    assert isinstance(data, ImageFiles)
    images = data.read()
    assert images.classes == ("cat", "dog") and images.ids[0] == "cat/0.png"
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] and images.labels.dtype == np.int64
    assert images.pixels.shape == (6, 4, 6, 3) and images.pixels.dtype == np.uint8
    assert np.array_equal(images.pixels[3], np.asarray(picture(0))) and images.splits is None and images.notes == ()
    assert data.check()[0] == "6 images of 6x4, colour"


def test_split_folders(tmp_path: Path) -> None:
    for word, n in (("train", 3), ("val", 1), ("test", 2)):
        for name in ("a", "b"):
            for i in range(n):
                put(tmp_path / "d" / word / name / f"{i}.jpg", picture(i, mode="L"))
    images = ImageFiles(path=tmp_path / "d").read()
    assert images.splits is not None and np.bincount(images.splits).tolist() == [6, 2, 4]
    assert images.pixels.shape[-1] == 1 and images.classes == ("a", "b")
    assert open_data(str(tmp_path / "d")).facts()["split"] == "6/2/4"


def test_labels_table(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "d" / "in" / f"{i}.png", picture(i))
    (tmp_path / "d" / "labels.csv").write_text("file,label,split\nin/2.png,b,train\nin/0.png,a,test\nin/1.png,,\n")
    data = open_data(str(tmp_path / "d"))
    images = data.read()
    assert images.ids == ("in/2.png", "in/0.png", "in/1.png")  # the order of the table
    assert images.labels.tolist() == [1, 0, -1] and images.splits is not None and images.splits.tolist() == [0, 2, -1]


def test_flat_folder_and_one_picture_have_no_labels(tmp_path: Path) -> None:
    for i in range(2):
        put(tmp_path / "flat" / f"{i}.jpg", picture(i))
    for path, n in ((tmp_path / "flat", 2), (tmp_path / "flat" / "0.jpg", 1)):
        data = open_data(str(path))
        assert data.kind == "images" and data.read().labels.tolist() == [-1] * n
        assert "no image is labelled" in " ".join(data.check())


def test_other_folders_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "fake.png").write_bytes(b"not a picture")
    (tmp_path / "a" / "labels.txt").write_text("x")
    assert not ImageFiles.recognises(tmp_path / "a") and not ImageFiles.recognises(tmp_path / "a" / "labels.txt")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "labels.csv").write_text("id,label\n1,2\n")
    assert not ImageFiles.recognises(tmp_path / "t")


# -- what reading states -------------------------------------------------------------------------------------------------
def test_grey_among_colour_is_stated(classes: Path) -> None:
    put(classes / "cat" / "grey.png", picture(9, mode="L"))
    images = ImageFiles(path=classes).read()
    grey = images.pixels[images.ids.index("cat/grey.png")]
    assert (grey == grey[..., :1]).all() and images.notes == (
        "1 grey pictures among colour ones were given three equal channels",
    )


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    seen = np.full((4, 4, 4), 255, np.uint8)
    seen[..., 0] = 10
    seen[:2, :, 3] = 0
    put(tmp_path / "d" / "a" / "0.png", Image.fromarray(seen, "RGBA"))
    put(tmp_path / "d" / "b" / "0.png", Image.fromarray(np.full((4, 4, 4), 255, np.uint8), "RGBA"))
    images = ImageFiles(path=tmp_path / "d").read()
    assert images.pixels[0, 0, 0].tolist() == [255, 255, 255] and images.pixels[0, 3, 0].tolist() == [10, 255, 255]
    assert images.notes == ("1 pictures with transparent parts were laid on white",)


def test_camera_rotation_palette_and_depth(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    put(tmp_path / "d" / "a" / "0.png", picture(0, (4, 6)), exif=exif)
    put(tmp_path / "d" / "a" / "1.png", picture(5, (6, 4)).quantize(256))
    deep = (np.arange(24, dtype=np.uint16).reshape(4, 6) * 256) + 7
    put(tmp_path / "d" / "b" / "0.png", Image.fromarray(deep))
    put(tmp_path / "d" / "b" / "1.png", Image.fromarray(np.eye(4, 6) > 0))
    images = ImageFiles(path=tmp_path / "d").read()
    assert np.array_equal(images.pixels[0], np.rot90(np.asarray(picture(0, (4, 6))), -1))
    assert np.array_equal(images.pixels[1], np.asarray(picture(5)))
    assert np.array_equal(images.pixels[2][..., 0], deep >> 8) and set(np.unique(images.pixels[3])) == {0, 255}
    assert "1 pictures were turned as their camera says (EXIF)" in images.notes
    assert "1 16-bit pictures were reduced to 8 bits" in images.notes


def test_side_scales_and_crops(classes: Path) -> None:
    put(classes / "cat" / "large.png", picture(1, (40, 20)))
    put(classes / "cat" / "right.png", picture(1, (8, 8)))
    images = ImageFiles(path=classes, side=8).read()
    assert images.pixels.shape == (8, 8, 8, 3)
    assert images.notes == ("7 pictures were scaled and centre-cropped to 8x8",)
    assert np.array_equal(images.pixels[images.ids.index("cat/right.png")], np.asarray(picture(1, (8, 8))))


# -- what is refused -----------------------------------------------------------------------------------------------------
def test_differing_sizes_name_the_file(classes: Path) -> None:
    put(classes / "dog" / "odd.png", picture(0, (7, 4)))
    with pytest.raises(UserError, match=r"odd\.png is 7x4, but .*0\.png is 6x4.*data\.side=4"):
        ImageFiles(path=classes).read()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_picture_is_named(classes: Path, suffix: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        whole, "PNG" if suffix == "png" else "JPEG"
    )
    for name, content in (("cut", whole.getvalue()[: len(whole.getvalue()) // 2]), ("text", b"hello"), ("empty", b"")):
        file = classes / "dog" / f"{name}.{suffix}"
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.{suffix} cannot be read"):
            ImageFiles(path=classes).read()
        file.unlink()


def test_strange_folders_are_refused(classes: Path, tmp_path: Path) -> None:
    (classes / "bird").mkdir()
    with pytest.raises(UserError, match="bird should be the folder of a class, but it holds no PNG or JPEG"):
        list_files(classes)
    put(classes / "bird" / "deep" / "0.png", picture())
    with pytest.raises(UserError, match="a level deeper, in deep"):
        list_files(classes)
    (classes / "bird" / "deep" / "0.png").rename(classes / "bird" / "0.png")
    (classes / "bird" / "deep").rmdir()
    put(classes / "loose.png", picture())
    with pytest.raises(UserError, match=r"beside them, loose\.png"):
        list_files(classes)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no PNG or JPEG"):
        list_files(tmp_path / "none")
    with pytest.raises(UserError, match="does not exist"):
        ImageFiles(path=tmp_path / "gone").read()
    put(tmp_path / "s" / "train" / "a" / "0.png", picture())
    put(tmp_path / "s" / "extra" / "a" / "0.png", picture())
    with pytest.raises(UserError, match="expected train, valid and test only"):
        list_files(tmp_path / "s")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\nx.png,a\n", "line 2: there is no file 'x.png'"),
        ("file,label\n0.png,a\n0.png,b\n", "line 3: '0.png' stands on line 2"),
        ("file,label\n../0.png,a\n", "line 2: .* lies outside"),
        ("file,label,split\n0.png,a,later\n", "line 2: split 'later'"),
        ("file,kind\n0.png,a\n", "no column 'label'"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, says: str) -> None:
    put(tmp_path / "d" / "0.png", picture())
    put(tmp_path / "0.png", picture())
    (tmp_path / "d" / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        list_files(tmp_path / "d")


# -- identity and export -------------------------------------------------------------------------------------------------
def test_digest_is_of_names_and_bytes(classes: Path, tmp_path: Path) -> None:
    import shutil

    before = ImageFiles(path=classes).digest()
    shutil.copytree(classes, tmp_path / "copy")
    assert ImageFiles(path=tmp_path / "copy").digest() == before
    assert ImageFiles(path=classes, side=8).digest() != before
    put(classes / "cat" / "0.png", picture(77))
    assert ImageFiles(path=classes).digest() != before


def test_export_reads_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        pixels = rng.integers(0, 256, (5, 4, 3, channels), np.uint8)
        data = from_arrays(pixels, [0, 1, -1, 1, 0], ("a/b", "c"), [0, 1, -1, 2, 0])
        data.write(tmp_path / f"out{channels}")
        back = open_data(str(tmp_path / f"out{channels}")).read()
        given = data.read()
        assert np.array_equal(back.pixels, given.pixels) and back.classes == given.classes
        assert back.labels.tolist() == given.labels.tolist() and back.splits.tolist() == given.splits.tolist()


def test_arrays_are_checked() -> None:
    good = np.zeros((3, 4, 4), np.uint8)
    assert from_arrays(good, [0, 1, 0]).read().pixels.shape == (3, 4, 4, 1)
    assert open_data(Images(good[..., None], np.array([0, 1, 0]), ("x", "y", "z"), ("a", "b"))).read().ids == ("x", "y", "z")
    for wrong, says in (
        ({"pixels": good.astype(float)}, "uint8"),
        ({"pixels": np.zeros((3, 4, 4, 2), np.uint8)}, "C 1 or 3"),
        ({"pixels": good, "labels": [0, 1]}, "3 whole numbers"),
        ({"pixels": good, "labels": [0, 1, 2], "classes": ("a", "b")}, "up to 2"),
        ({"pixels": good, "splits": [0, 1, 7]}, "splits are 3"),
        ({"pixels": good, "ids": ["a", "a", "b"]}, "3 different"),
    ):
        with pytest.raises(UserError, match=says):
            from_arrays(**wrong)


# -- built in and catalogue ----------------------------------------------------------------------------------------------
def test_digits_hold_their_fixed_split() -> None:
    images = Digits().read()
    assert images.pixels.shape == (1797, 8, 8, 1) and images.splits is not None
    assert np.bincount(images.splits).tolist() == [1167, 130, 500]
    from sklearn.datasets import load_digits

    assert np.array_equal(np.rint(images.pixels[..., 0] * (16 / 255)), load_digits().images)
    assert Digits().digest() == Digits().digest() and open_data("digits").kind == "images"


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_catalogue(name: str, mirror: Callable[[str], Path]) -> None:
    mirror(name)
    data = open_data(name)
    images = data.read()
    train, test = {"mnist": (20_000, 10_000), "fashion-mnist": (8_000, 2_000)}[name]
    assert images.size == (28, 28, 1) and images.splits is not None
    assert np.bincount(images.splits).tolist() == [train - train // 10, train // 10, test]
    assert len(set(images.ids)) == len(images) and images.labels.max() == 9
    assert np.array_equal(images.pixels, open_data(name).read().pixels)


def test_catalogue_refuses_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-0.npz").write_bytes(b"other")
    monkeypatch.setenv("LATTICEWORK_DATA", str(tmp_path))
    with pytest.raises(UserError, match="SHA-256"):
        open_data("mnist").read()
    with pytest.raises(UserError, match="known: fashion-mnist, mnist"):
        CatalogueImages(file="cifar").digest()
