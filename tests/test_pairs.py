"""Which conditions go together: every pair is painted, or refused in a sentence; the table of the docs is this one."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.scene import CONDITIONS, Condition, Control, Edit, Layout, Lora, Region, Scene, Style, Subject
from capriccio.studio import Studio

DOCS = Path(__file__).parents[1] / "docs" / "scenes.md"
TOGETHER = {("subject", "edit"), ("region", "region")}
"""Pairs that one method paints."""
IN_TURNS = {("subject", "region"), ("subject", "layout"), ("edit", "region")}
"""Pairs that are painted one after the other."""
COMPANIONS = ("control", "lora")
"""What goes along with everything."""
PAIRS = list(combinations_with_replacement(CONDITIONS, 2))
PAGE = {"prompt": "a shelf", "base": "a shelf", "ratio": "1,1", "regions": ["a mug", "a hat"]}
SMALL: dict[str, Any] = {"width": 32, "height": 24, "num_inference_steps": 2, "seed": 1}


def outcome(pair: tuple[str, str]) -> str:
    """What the docs say of a pair."""
    if pair in IN_TURNS:
        return "in turns"
    return "yes" if pair in TOGETHER or any(kind in COMPANIONS for kind in pair) else "refused"


@cache
def studio(family: str) -> Studio:
    if family == "flux":
        return Studio(FluxBackbone(tiny.flux(), controlnets={"edges": tiny.control_flux()}))
    pipe = tiny.stable_diffusion()
    return Studio(UNetBackbone(pipe, controlnets={"edges": tiny.control_unet(pipe.unet)}))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, unet = tmp_path_factory.mktemp("loras"), tiny.stable_diffusion().unet
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder / "sd15", unet_lora_layers=get_peft_model_state_dict(unet))
    return {"flux": tiny.save_lora(folder / "flux"), "sd15": folder / "sd15"}


def one(kind: str, number: int, lora: Path) -> Condition:
    """A condition of each kind; the second of a kind is another one."""
    picture = Image.fromarray(np.full((24, 32, 3), 90 + 60 * number, np.uint8))
    inside = np.zeros((24, 32), np.uint8)
    inside[6:18, 8:24] = 255
    alone = picture.copy()
    alone.putalpha(Image.fromarray(inside))
    left = (0, 0, 0.5, 1) if number == 0 else (0.5, 0, 1, 1)
    name = ("mug", "hat")[number]
    made: dict[str, Any] = {
        "subject": lambda: Subject(alone, name=name),
        "style": lambda: Style(picture, name=f"style {number}"),
        "edit": lambda: Edit(picture, mask=Image.fromarray(inside)),
        "region": lambda: Region("a red cup", box=left),
        "layout": lambda: Layout(page=PAGE),
        "control": lambda: Control(picture, "edges", controlnet_conditioning_scale=0.5),
        "lora": lambda: Lora(lora, name=f"lora {number}", weight=0.5),
    }
    return made[kind]()


@pytest.mark.parametrize("family", ["flux", "sd15"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_is_painted_or_refused(family: str, pair: tuple[str, str], loras: dict[str, Path]) -> None:
    both = [one(kind, number, loras[family]) for number, kind in enumerate(pair)]
    if pair == ("subject", "region"):
        both[1] = Region("a {mug}", box=(0.25, 0.25, 0.75, 1))
    if pair == ("edit", "region"):
        both[0] = Edit(both[0].image)  # its regions are its masks
    room = {"max_sequence_length": 32} if family == "flux" else {}
    scene = Scene("a shelf", both, **SMALL | room)
    if outcome(pair) == "refused":
        kinds = re.escape(" + ".join(sorted(pair)))
        words = rf"Nothing here paints {kinds} together"
        with pytest.raises(CapriccioError, match=words):
            studio(family).plan(scene)
        return
    painting = studio(family).paint(scene)
    assert np.asarray(painting.images[0]).std() > 0
    assert len(painting.plan.turns) == (2 if "subject" in pair and pair in IN_TURNS else 1)


def test_the_docs_have_this_table() -> None:
    table = ["| | " + " | ".join(f"`{kind}`" for kind in CONDITIONS) + " |"]
    order = list(CONDITIONS)
    for row in order:
        cells = [outcome((min(row, c, key=order.index), max(row, c, key=order.index))) for c in order]
        table.append(f"| `{row}` | " + " | ".join(cells) + " |")
    text = DOCS.read_text()
    missing = [line for line in table if line not in text]
    assert not missing, "\n".join(table)
