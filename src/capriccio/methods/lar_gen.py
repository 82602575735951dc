"""LAR-Gen: paint a subject, a text, both or neither into the mask of a picture, seamlessly.

Pan, Wang, Chen, Xu, Shi, Zhou: *Locate, Assign, Refine: Taming Customized Image Inpainting with Text-Subject Guidance*,
arXiv 2403.19534. Three steps on a U-Net that inpaints:

* **Locate** (Eqs. 1 to 3): mask and masked picture as input channels, which is the inpainting model itself, and known
  latents held on their path while it paints; without an inpainting model, held alone (engine ``hold``);
* **Assign** (Eqs. 4 to 7): every layer of cross-attention also looks at 16 tokens of the subject, in a softmax of its
  own, ``out = Attn(Q, K, V) + beta Attn(Q, K', V')``;
* **Refine** (Eqs. 8 to 10): RefineNet denoises the subject itself, as noisy as the picture, and the states of its
  decoder's self-attention stand beside the keys and values of the same layers here, in one softmax. On SDXL it reads
  the sizes that the painter reads, and zeros for pooled text (the release's ``null_y``).

Guidance is one (Eq. 12): without text and with a subject of zeros on the one side, with both on the other, 7.5;
RefineNet is there on both. 50 steps of DDIM.

    Scene("a {mug} on the table", [Subject("mug.png", name="mug"), Edit("table.png", mask="spot.png", zoom=1.3)])

With an empty prompt the subject alone is painted, and beta is 1 as in the paper's Table 1, else 0.3. Text only, and
neither of the two, are plain inpainting: the same network without the tokens of a subject.

Differences from the authors' release, all of them deliberate:
* outside the mask every pixel is the one given, where the release pastes a whole crop that went through the VAE;
* RefineNet's noise is drawn once a step for all pictures and branches, from the index of the step, where the release
  draws anew in each call: its states are computed once for a whole batch of one subject;
* the zoom is the edit's own (``zoom=1.3``), so any method has it;
* no rescaled guidance, which the paper does not have either.

The released model of SDXL, which is Locate and Assign, opens as it lies (`capriccio.formats.largen`). Nobody has
published a RefineNet, of any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from capriccio import assets
from capriccio.attention import AttentionProgram, Bank, Layers, Scope, Tokens
from capriccio.backbones.base import Backbone
from capriccio.backbones.unet import UNetBackbone, network_flops
from capriccio.canvas import on_colour, opaque, to_pixels
from capriccio.draft import Draft, Method, Preparation, Supply, paint_into
from capriccio.errors import CapriccioError
from capriccio.modules.lar_gen import Eye, LarGen, decoder, encoder_in
from capriccio.phases import POSITIVE
from capriccio.pictures import fit, open_mask, open_picture
from capriccio.references import subject_mask
from capriccio.scene import Edit, Subject

NAME = "lar-gen"
RIM = 1.02  # side of the square around a subject, in sizes of its longer side
CROSS = Layers(("cross",))


@dataclass(frozen=True)
class Options:
    """Settings of LAR-Gen.

    Attributes:
        beta: Weight of the subject's tokens; 0.3 as in the paper where there is a text, 1 where there is none.
        refine: Whether RefineNet helps; where it is loaded, if ``None``.
        engine: How the known part is kept; the best at hand if ``None``.
        hold: Whether known latents are held on their path as well, beside what the inpainting model reads of them, as
            in the paper (Eq. 3); they are, if ``None``.
    """

    beta: float | None = None
    refine: bool | None = None
    engine: Literal["fill", "hold"] | None = None
    hold: bool | None = None


@dataclass(frozen=True)
class Assign:
    """What Assign's layers see of one subject, and of none."""

    subject: Tokens
    nothing: Tokens

    def at(self, time: Tensor, step: int, role: str) -> Tokens:
        """Return the subject for the positive branch, and what CLIP sees as zeros for the others."""
        return self.subject if role == POSITIVE else self.nothing


class Refine:
    """RefineNet on one subject: its states at each step, the same for all branches and pictures.

    Args:
        module: LAR-Gen, with Refine.
        latents: Of the subject, (1, C, h, w).
        details: What RefineNet reads in the place of text, (1, T, D).
        alphas: Share of the picture's variance that is left at each time of training.
        beside: On SDXL, pooled text and sizes.
    """

    def __init__(
        self, module: LarGen, latents: Tensor, details: Tensor, alphas: Tensor, beside: dict[str, Tensor] | None
    ) -> None:
        self.module, self.latents, self.alphas = module, latents, alphas
        self.details, self.beside = details, beside
        self._step: int | None = None
        self._told: Tokens | None = None

    @torch.no_grad()
    def at(self, time: Tensor, step: int, role: str) -> Tokens:
        """Return the states of the decoder's self-attention."""
        if self._told is None or step != self._step:
            drawn = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(step))
            noise = drawn.to(self.latents)
            alpha = self.alphas.to(self.latents)[time.round().long().reshape(1).to(self.latents.device)]
            self._told = self.module.reference(self.latents, noise, alpha, time, self.details, self.beside)
            self._step = step
        return self._told


def plan(draft: Draft, conditions: Sequence[Subject | Edit], options: Options) -> Draft:
    """Lay the picture on the canvas, and give the layers two banks of the subject."""
    (edit,) = (one for one in conditions if isinstance(one, Edit))
    (subject,) = (one for one in conditions if isinstance(one, Subject))
    backbone, module = _module(draft.backbone)
    if edit.mask is None or edit.strength != 1:
        raise CapriccioError("lar-gen paints a subject into the mask of an edit, from noise; give a mask, no strength.")
    draft = draft.adopt(num_inference_steps=50, true_cfg_scale=7.5)
    draft = paint_into(draft.inpaint(options.engine, hold=options.hold), edit)
    draft = replace(draft, held=draft.held or (options.hold is None and draft.engine == "fill"))
    beta = options.beta if options.beta is not None else 0.3 if draft.scene.words.strip() else 1.0
    refines = module.refine is not None if options.refine is None else options.refine
    if refines and module.refine is None:
        raise CapriccioError(
            "refine=True asks for a RefineNet, but none is loaded (nobody has published one); leave it out, or open "
            "the model with a folder of LAR-Gen that has refine.safetensors."
        )
    draft = _seen(draft, subject, backbone, module, beta)
    draft = _refined(draft, subject, backbone, module) if refines else draft
    if refines and module.base_differs:
        draft = draft.say(
            "RefineNet learned beside other weights than those of the model that paints from text, of which it is a "
            "copy, and may do little; open the model it was taught with, or teach it again."
        )
    return draft.say(*filter(None, [backbone.defaults.caution]))


def _module(backbone: Backbone) -> tuple[UNetBackbone, LarGen]:
    """Return the model and what LAR-Gen adds to it.

    Raises:
        CapriccioError: If it is of another family, or nothing was loaded.
    """
    if not isinstance(backbone, UNetBackbone):
        raise CapriccioError(
            f"lar-gen adds to a U-Net, but {backbone.name!r} has none; on FLUX paint the subject with diptych, whose "
            "reference panel does what Refine does."
        )
    module = backbone.modules.get(NAME)
    if not isinstance(module, LarGen):
        raise CapriccioError(
            f"Nothing of LAR-Gen is loaded into {backbone.name!r}; open it with modules={{'lar-gen': folder}} (the "
            "file of an IP-Adapter of the same model will do for Assign), or choose another method."
        )
    return backbone, module


def _seen(draft: Draft, subject: Subject, backbone: UNetBackbone, module: LarGen, beta: float) -> Draft:
    """Find the subject, and let cross-attention see it."""
    name, bank = subject.name, f"assign:{subject.name}"
    if len(subject.images) > 1:
        raise CapriccioError(
            f"lar-gen knows a subject from one picture, but {name!r} came with {len(subject.images)}; give one."
        )

    @torch.no_grad()
    def look(alone: Image.Image) -> Assign:
        return Assign(module.assign(to_pixels(alone).to(backbone.device)), module.nobody(1))

    own = draft.backbone.defaults.own
    alone = Preparation(f"{name}.alone", "picture", f"the {name} alone on white", lambda: _alone(subject, own))
    says = f"{module.queries} tokens of the {name}, by CLIP and what the adapter makes of it"
    return replace(
        draft.add(alone, Preparation(bank, "source", says, look, (alone.name,))),
        program=draft.program + AttentionProgram((Bank(bank, "image", "own", beta, Scope(CROSS)),)),
        supplies=(*draft.supplies, Supply(bank, module.queries, bank)),
    )


def _refined(draft: Draft, subject: Subject, backbone: UNetBackbone, module: LarGen) -> Draft:
    """Let the decoder's self-attention look at RefineNet's states."""
    bank, size = f"refine:{subject.name}", (draft.settings.width, draft.settings.height)
    assert module.refine is not None

    @torch.no_grad()
    def look(alone: Image.Image) -> Refine:
        latents = backbone.clean(fit(alone, *size, "pad")[0])
        details = module.details(to_pixels(alone).to(backbone.device)).to(backbone.dtype)
        rows, columns = latents.shape[-2:]
        beside = backbone.beside(details, (rows, columns))
        return Refine(module, latents, details, backbone.pipe.scheduler.alphas_cumprod, beside)

    says = f"RefineNet, which denoises the {subject.name} at {size[0]} x {size[1]} beside every step"
    tokens = size[0] * size[1] // draft.backbone.token**2
    flops = network_flops(module.refine, module.eye.patches, tokens)
    return replace(
        draft.add(Preparation(bank, "source", says, look, (f"{subject.name}.alone",))),
        program=draft.program + AttentionProgram((Bank(bank, "image", scope=Scope(decoder(module.refine))),)),
        supplies=(*draft.supplies, Supply(bank, (size[1], size[0]), bank, flops)),
    )


def _alone(subject: Subject, is_miniature: bool) -> Image.Image:
    """Return the subject on white, in a square little larger than itself."""
    picture = open_picture(subject.image)  # type: ignore[arg-type]
    if subject.mask is not None:
        picture = picture.convert("RGB")
        picture.putalpha(open_mask(subject.mask, picture.size, f"mask of {subject.name!r}"))
    if not subject.remove_background:
        return _squared(opaque(picture))
    mask = subject_mask(picture, subject.name, is_miniature)
    box = mask.getbbox()
    if box is None:
        raise CapriccioError(f"The picture of {subject.name!r} is transparent everywhere; give one that shows it.")
    return _squared(on_colour(picture, mask).crop(box))


def _squared(picture: Image.Image) -> Image.Image:
    side = round(RIM * max(picture.size))
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def load(source: Path, backbone: Backbone) -> LarGen:
    """Load Assign, and Refine where it is there, for a model.

    Args:
        source: A folder that `LarGen.save` wrote; the authors' release (`capriccio.formats.largen`), the folder or its
            checkpoint; or the file of an IP-Adapter with an ``image_encoder`` beside it.
        backbone: Of the U-Net family.

    Raises:
        CapriccioError: If it cannot be read, or does not fit the model.
    """
    if not isinstance(backbone, UNetBackbone):
        raise CapriccioError(f"LAR-Gen adds to a U-Net, but {backbone.name!r} has none; open a Stable Diffusion model.")
    folder = source if source.is_dir() else source.parent
    if backbone.defaults.own and encoder_in(folder) is None:
        folder = assets.path("miniature/clip")
    unet: Any = backbone.fill if backbone.fill is not None else backbone.base
    return LarGen.load(source, unet, backbone.base, Eye.load(folder))


METHOD = Method(
    name=NAME,
    title="LAR-Gen (Pan et al., 2024)",
    paper="https://arxiv.org/abs/2403.19534",
    what="a subject, a text, or both, painted into the mask of an existing picture",
    takes=(frozenset({"subject", "edit"}),),
    options=Options,
    plan=plan,
    neutral="beta=0, refine=false",
    load=load,
)
