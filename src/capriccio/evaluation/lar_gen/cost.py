"""What LAR-Gen costs beside plain inpainting: pictures of one subject share what RefineNet says of it."""

from __future__ import annotations

from typing import Any

import torch

from capriccio.evaluation.lar_gen.painters import inpainting, lar_gen
from capriccio.evaluation.lar_gen.samples import Sample
from capriccio.evaluation.timing import in_turn, ratio
from capriccio.phases import POSITIVE
from capriccio.plan import prepare
from capriccio.sampling import paint_latents
from capriccio.studio import Studio

_SOME_TIME = torch.tensor(500.0)  # RefineNet costs the same at all


def cost_row(studio: Studio, sample: Sample, pictures: int = 8, steps: int = 24, rounds: int = 3) -> dict[str, Any]:
    """Return how long a batch of one subject takes, in parts of as many plain inpaintings and a RefineNet every step.

    All three run in turn on the same threads, preparations included; latents only, for decoding is the same in both.

    Args:
        studio: With LAR-Gen and its RefineNet loaded.
        sample: Whose subject is painted into whose hole.
        pictures: How many at once.
        steps: Denoising steps, two or more.
        rounds: Measurements of each.

    Raises:
        CapriccioError: If there is no RefineNet.
    """
    both = [
        studio.plan(scene.but(seeds=tuple(range(pictures)), num_inference_steps=steps))
        for scene in (lar_gen(sample), inpainting(sample))
    ]
    refine = prepare(both[0])[f"refine:{sample.guest.name}"]

    def reference() -> None:
        for step in range(steps):
            refine.at(_SOME_TIME, step, POSITIVE)

    paints = [lambda plan=plan: paint_latents(plan, studio.backbone) for plan in both]
    with_subject, plain, alone = in_turn([*paints, reference], rounds)
    over_plain = ratio(with_subject, [a + b for a, b in zip(plain, alone, strict=True)])
    shares = {"over_plain": over_plain, "reference_share": ratio(alone, plain)}
    return {"name": "cost", "pictures": pictures, "steps": steps, **shares}
