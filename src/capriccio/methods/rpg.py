"""RPG: a planner divides the picture into cells, each with a prompt of its own, and each cell is painted under it.

Yang, Yu, Meng, Xu, Ermon, Cui: *Mastering Text-to-Image Diffusion: Recaptioning, Planning, and Generating with
Multimodal LLMs*, ICML 2024, arXiv 2401.11708. A language model names the entities of a sentence, gives each a cell of
the page (rows, then columns) and a richer prompt. Two methods go by the name of its "complementary regional diffusion":

``mode="attention"``, the released code: in every cross-attention layer and step, each cell looks at its own prompt, and

    out[cell] = (1 - base_ratio) attention(cell, prompt of the cell) + base_ratio attention(cell, base prompt)

``mode="latent"``, the paper: every prompt denoises the whole picture from the same latents, each result is resized to
its cell, the cells are put together, and

    x_{t-1} = base_ratio x_base + (1 - base_ratio) x_cells

Defaults are the release's: 20 steps, guidance 7, base ratio 0.5 (0.35 to 0.55 where entities are of one class).

Differences from the authors' code, all of them deliberate:
* a planner's answer is checked, repaired once and then refused; counts of cells and prompts must agree;
* pooled text (SDXL, FLUX) is the base prompt's (there, that of the last cell);
* cells meet exactly, at every resolution and in pictures of any shape;
* guidance's other branch is computed once, not once for each cell; on FLUX, whose text and image attend jointly, the
  attention mode is our port: a cell sees its own prompt and the whole image, a prompt sees itself and its cell;
* in latent mode cells are resized by the nearest latent, which keeps the variance of the noise in them.

    Scene("a red cube on the left and a blue ball on the right", [Layout()])
    Scene("two pets", [Layout(planner="https://host/v1#model")])
    Scene("two pets", [Layout(page=Page.load("pets.yaml").model_dump())])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from capriccio.attention import AttentionProgram, Layers, Mix, Scope, See, Steps, Twin
from capriccio.canvas import Box, Canvas
from capriccio.draft import Collage, Draft, Method
from capriccio.errors import CapriccioError
from capriccio.perception.pages import Page
from capriccio.perception.planners import planner
from capriccio.phases import POSITIVE
from capriccio.scene import Layout

BASE = "base"


@dataclass(frozen=True)
class Options:
    """Settings of RPG.

    Attributes:
        mode: ``"attention"`` (the released code) or ``"latent"`` (the paper).
        base_ratio: Weight of the base prompt, 0 to 1; 1 is neutral.
    """

    mode: Literal["attention", "latent"] = "attention"
    base_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.base_ratio <= 1:
            raise CapriccioError(f"base_ratio received {self.base_ratio:g}; give 0 (cells alone) to 1 (off).")


def plan(draft: Draft, conditions: Sequence[Layout], options: Options) -> Draft:
    """Ask the planner, and add the cells to a draft."""
    (layout,) = conditions
    page = Page(**layout.page) if layout.page is not None else planner(layout.planner).plan(draft.scene.words)
    asked = "the page given" if layout.page is not None else f"planner {layout.planner!r}"
    if page.prompt != draft.scene.words:
        draft = draft.say(f"The page was planned for {page.prompt!r}; its own words are painted, not the scene's.")
    # The page travels with the scene, so that it can be painted again, or edited, without asking anybody.
    settled = layout.model_copy(update={"page": page.model_dump(mode="json")})
    others = [condition for condition in draft.scene.conditions if condition is not layout]
    draft = replace(draft, scene=draft.scene.but(conditions=(*others, settled)), prompt=page.base)
    draft = draft.adopt(num_inference_steps=20)
    if draft.backbone.defaults.plain_guidance and draft.scene.guidance_scale is None:
        draft = draft.adopt(true_cfg_scale=7.0)  # the release's, of Stable Diffusion and SDXL
    canvas = Canvas(draft.settings.width, draft.settings.height, draft.backbone.token)
    boxes = _boxes(page, canvas)
    said = "; ".join(f"{prompt!r} at {box}" for prompt, box in zip(page.regions, boxes, strict=True))
    draft = draft.say(f"RPG, {asked}: {page.ratio} cuts the page into {said}.")
    if options.base_ratio == 1:
        return draft.say("base_ratio is 1: the base prompt paints alone.")
    prompts = {f"region/{number}": prompt for number, prompt in enumerate(page.regions, 1)}
    if options.mode == "latent":
        return replace(draft, passages=prompts, collage=Collage(tuple(boxes), options.base_ratio))
    masks = {f"image:{name}": canvas.mask(box) for name, box in zip(prompts, boxes, strict=True)}
    groups = {"image": np.ones((canvas.height, canvas.width), bool)} | masks
    program = attention(tuple(prompts), options.base_ratio, joint=_is_joint(draft))
    return replace(draft, groups=groups, program=program, passages=prompts, reading=Steps())


def attention(names: Sequence[str], base_ratio: float, joint: bool) -> AttentionProgram:
    """Return which cell looks at which prompt, in every step.

    Args:
        names: Of the cells: their groups are ``text:<name>`` and ``image:<name>``.
        base_ratio: Weight of the base prompt.
        joint: Whether text and image are one sequence (FLUX).
    """
    scope = Scope(Layers() if joint else Layers(("cross",)), rows=(POSITIVE,))
    edits: list[See | Mix] = []
    for name in names:
        text, image = f"text:{name}", f"image:{name}"
        edits.append(See(image, (text, "image") if joint else text, scope))
        edits += [See(text, (text, image), scope)] * joint
    twins = (Twin(BASE, "image", Layers(("single",)) if joint else None),) if base_ratio else ()
    prompts = ("text:base", *(twin.name for twin in twins))
    edits += [See(prompts, prompts, scope), *([Mix("image", BASE, base_ratio, scope)] if base_ratio else [])]
    return AttentionProgram(tuple(edits), twins)


def _is_joint(draft: Draft) -> bool:
    return any(layer.kind == "double" for layer in draft.layers)


def _boxes(page: Page, canvas: Canvas) -> list[Box]:
    """Return the cells in whole tokens, whose edges meet.

    Raises:
        CapriccioError: If a cell is smaller than a token.
    """
    boxes = []
    rows, columns = canvas.grid
    for cell, prompt in zip(page.cells, page.regions, strict=True):
        left, right = (round(edge * columns) * canvas.token for edge in (cell.left, cell.right))
        top, bottom = (round(edge * rows) * canvas.token for edge in (cell.top, cell.bottom))
        if right <= left or bottom <= top:
            raise CapriccioError(
                f"The cell of {prompt!r} is smaller than a token of {canvas.token} x {canvas.token} pixels; paint a "
                "larger picture or plan fewer cells."
            )
        boxes.append(Box(left, top, right - left, bottom - top))
    return boxes


METHOD = Method(
    name="rpg",
    title="RPG: Recaption, Plan and Generate (Yang et al., ICML 2024)",
    paper="https://arxiv.org/abs/2401.11708",
    what="a planner divides the picture into cells with prompts of their own",
    takes=(frozenset({"layout"}),),
    options=Options,
    plan=plan,
    neutral="base_ratio=1",
)
