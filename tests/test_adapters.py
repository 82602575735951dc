"""LoRAs and IP-Adapters come and go in any order between our paintings; each painting is what it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from capriccio.backbones.unet import UNetBackbone
from capriccio.methods import METHODS
from capriccio.plan import make_plan
from capriccio.sampling import paint
from capriccio.scene import Scene, Subject

LORA, ADAPTER = "lora.safetensors", "adapter.safetensors"
ORDERS = sorted(
    order
    for order in set(permutations(("+lora", "-lora", "+adapter", "-adapter")))
    if order.index("+lora") < order.index("-lora") and order.index("+adapter") < order.index("-adapter")
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA and an IP-Adapter of the tiny Stable Diffusion, and the picture of a subject."""
    folder = tmp_path_factory.mktemp("adapters")
    pipe = tiny.stable_diffusion()
    weights = {
        f"{part}.{key}": value for part, values in tiny.ip_adapter(pipe.unet).items() for key, value in values.items()
    }
    save_file(weights, folder / ADAPTER)
    torch.manual_seed(2)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet), weight_name=LORA)
    subject = np.zeros((16, 16, 4), np.uint8)
    subject[4:12, 4:12] = (200, 30, 30, 255)
    Image.fromarray(subject).save(folder / "subject.png")
    return folder


def do(pipe: Any, step: str, files: Path) -> None:
    {
        "+lora": lambda: pipe.load_lora_weights(str(files), weight_name=LORA, adapter_name="one"),
        "-lora": pipe.unload_lora_weights,
        "+adapter": lambda: pipe.load_ip_adapter(
            str(files), subfolder="", weight_name=ADAPTER, image_encoder_folder=None
        ),
        "-adapter": pipe.unload_ip_adapter,
    }[step]()


def painted(pipe: Any, files: Path) -> np.ndarray:
    """Diptych Prompting: edits in every self-attention layer."""
    backbone = UNetBackbone(pipe)
    subject = Subject(files / "subject.png", name="mug", options={"attention_weight": 3.0})
    scene = Scene("a red mug", [subject], seed=3, width=16, height=16, num_inference_steps=2)
    ((painting,),) = paint([make_plan(scene, backbone, METHODS)], backbone)
    return np.asarray(painting.image)


@pytest.fixture(scope="module")
def alone(files: Path) -> Callable[[frozenset[str]], np.ndarray]:
    """What is painted by a new pipeline on which nothing but these has ever been loaded."""

    @cache
    def fresh(present: frozenset[str]) -> np.ndarray:
        pipe = tiny.stable_diffusion()
        for name in sorted(present):
            do(pipe, f"+{name}", files)
        return painted(pipe, files)

    return fresh


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_every_order_gives_what_each_state_gives_alone(
    order: Sequence[str], files: Path, alone: Callable[[frozenset[str]], np.ndarray]
) -> None:
    pipe, present = tiny.stable_diffusion(), frozenset[str]()
    assert np.array_equal(painted(pipe, files), alone(present))
    for step in order:
        do(pipe, step, files)
        present ^= {step[1:]}
        assert np.array_equal(painted(pipe, files), alone(present))


def test_what_is_loaded_is_seen(alone: Callable[[frozenset[str]], np.ndarray]) -> None:
    assert not np.array_equal(alone(frozenset()), alone(frozenset({"lora"})))
