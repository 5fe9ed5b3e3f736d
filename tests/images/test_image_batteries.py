"""Every image method, its task and its data through the batteries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from latticework.core.dataset import Dataset, open_data
from latticework.core.grid import entry_of
from latticework.core.task import Part
from latticework.data.images import from_arrays
from latticework.images.tasks import ImageClassification
from latticework.testing import check_data, check_method, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints.json"
ANCHOR = {"is": "tiny-vit", "depth": 2, "heads": 2, "epochs": 2, "batch": 16}
METHODS: dict[str, dict[str, Any]] = {
    "majority-images": {},
    "small-cnn": {"epochs": 2},
    "tiny-vit": {"epochs": 2, "width": 8, "heads": 2, "depth": 2},
    "sn-net": {"epochs": 1, "calibration": 20, "anchors": [{"method": ANCHOR | {"width": w}} for w in (8, 12)]},
}


def some_digits() -> Dataset:
    """150 digits of four classes, with a split."""
    images = open_data("digits").read()
    rows = np.flatnonzero(images.labels < 4)[:150]
    return from_arrays(images.pixels[rows], images.labels[rows], images.classes[:4], np.repeat([0, 1, 2], [80, 30, 40]))


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    check_method(entry_of(name).with_settings(METHODS[name]), some_digits(), fingerprints=FINGERPRINTS)


def test_task_and_data() -> None:
    check_task("image-classification", some_digits())
    for data in (some_digits(), "digits"):
        check_data(data)


class Leaky(ImageClassification):
    """A task that leaves the labels of the test images in what a method sees."""

    name: ClassVar[str] = "image-classification"

    @staticmethod
    def _part(images: Any, index: Any, schema: Any) -> Part:
        return ImageClassification._part(images, index, schema)._replace(data=images.subset(index))


def test_a_planted_leak_is_caught() -> None:
    with pytest.raises(AssertionError, match="the truth of the test part can be read"):
        check_task(Leaky(), some_digits())
