"""LAR-Gen with a reference panel: our port of LAR-Gen to transformers, with nothing to train.

Pan, Wang, Chen, Xu, Shi, Zhou: *Locate, Assign, Refine: Taming Customized Image Inpainting with Text-Subject Guidance*,
arXiv 2403.19534, is written for U-Nets, and nobody has published its RefineNet. On FLUX its three steps are at hand:

* **Locate** is FLUX Fill, whose input channels are mask and masked picture (Eqs. 1 and 2), an inpainting ControlNet, or
  known latents held on their path (Eq. 3);
* **Refine** is a panel beside the picture that shows the subject alone on white: the same network denoises it, as noisy
  as the picture, and in every layer its keys and values stand beside the picture's own, in one softmax (Eqs. 8 to 10),

      out = softmax(Q [K ; K_ref]ᵀ / √d + [0 ; log w]) [V ; V_ref]        for queries in the mask

  where w (``reference_weight``) is how often each key of the panel counts; 1 is the softmax as it is;
* **Assign** has no counterpart but the sentence, which says that both panels show the same thing.

Text and subject, or the subject alone (an empty prompt), are painted here; text alone, or neither, is inpainting.

Differences from the paper: no network is added, so nothing is learned about how much of the subject to keep; where
LAR-Gen refines in the decoder, the panel is seen in every layer; one guidance on the text alone, for the panel is there
in both branches as RefineNet is; and the panel doubles the canvas. Works on U-Nets too, with less reason.

    Scene("a {mug} on the table", [Subject("mug.png", name="mug", by="lar-gen-panel"), Edit("table.png", mask="m.png")])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from capriccio import text
from capriccio.attention import AttentionProgram, Bias
from capriccio.draft import Draft, Method
from capriccio.errors import CapriccioError
from capriccio.references import paint_beside
from capriccio.scene import Edit, Subject

NAME = "lar-gen-panel"
TEMPLATE = (
    "Two pictures of the same {subject}, side by side. On the left, the {subject} alone on white. "
    "On the right, {prompt}"
)


@dataclass(frozen=True)
class Options:
    """Settings of LAR-Gen with a reference panel.

    Attributes:
        reference_weight: How often each key of the reference counts in the softmax of what is painted; 1 is neutral.
        engine: How the known part is kept; the best at hand if ``None``.
        control_scale: Strength of an inpainting ControlNet.
        template: The prompt, with ``{prompt}`` and ``{subject}``; without a text, the subject stands for it.
    """

    reference_weight: float = 1.5
    engine: Literal["controlnet", "fill", "hold"] | None = None
    control_scale: float | None = None
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        if self.reference_weight <= 0:
            raise CapriccioError(
                f"reference_weight received {self.reference_weight:g}; give a number above 0, 1 (neutral) to about 3."
            )
        if "prompt" not in text.slots(self.template):
            raise CapriccioError(f"The template {self.template!r} has no place for {{prompt}}; add it.")


def plan(draft: Draft, conditions: Sequence[Subject | Edit], options: Options) -> Draft:
    """Put the subject beside the picture, and let what is painted look at both."""
    (edit,) = (one for one in conditions if isinstance(one, Edit))
    (subject,) = (one for one in conditions if isinstance(one, Subject))
    draft = draft.inpaint(options.engine, options.control_scale).guided(3.5, 3.5).adopt(num_inference_steps=50)
    draft = paint_beside(draft, subject, edit, NAME)
    name = subject.description or subject.name
    prompt = text.fill(options.template, {"subject": name, "prompt": draft.scene.words.strip() or f"the {name}"})
    program = AttentionProgram((Bias("image:edit", "image:left", options.reference_weight),))
    return replace(draft, prompt=prompt, program=program).say(*filter(None, [draft.backbone.defaults.caution]))


METHOD = Method(
    name=NAME,
    title="LAR-Gen with a reference panel (ours, after Pan et al., 2024)",
    paper="https://arxiv.org/abs/2403.19534",
    what="a subject, with a text or alone, painted into the mask of an existing picture; on FLUX, with no training",
    takes=(frozenset({"subject", "edit"}),),
    options=Options,
    plan=plan,
    neutral="reference_weight=1",
)
