"""Fixtures that several rooms share: tiny checkpoints, built once and never downloaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from capriccio import assets


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_miniature") and not assets.available("miniature/flux"):
        pytest.skip("the trained weights of the miniature are not in this copy")


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX pipeline folder with random weights."""
    return tiny.save_flux(tmp_path_factory.mktemp("tiny") / "flux")


@pytest.fixture(scope="session")
def fill_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX Fill pipeline folder with random weights."""
    return tiny.save_fill(tmp_path_factory.mktemp("tiny") / "fill")


@pytest.fixture(scope="session")
def controlnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting ControlNet folder in the alimama layout with random weights."""
    return tiny.save_controlnet(tmp_path_factory.mktemp("tiny") / "controlnet")


@pytest.fixture
def subject_picture() -> Image.Image:
    """A red disc whose surroundings are transparent, 60 x 40."""
    rows, columns = np.mgrid[:40, :60]
    inside = (rows - 20) ** 2 + (columns - 30) ** 2 < 15**2
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[inside] = (220, 30, 30, 255)
    return Image.fromarray(pixels)


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture, 64 x 48."""
    rows, columns = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([rows * 5, columns * 4, rows + columns], -1).astype(np.uint8))


@pytest.fixture
def spot() -> Image.Image:
    """A mask of that picture: white in a rectangle, 64 x 48."""
    mask = Image.new("L", (64, 48))
    mask.paste(255, (16, 12, 40, 36))
    return mask


@pytest.fixture(autouse=True)
def fresh_precision() -> Iterator[None]:
    """accelerate keeps the first precision of a process; let every test choose its own, whatever the processor has."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
