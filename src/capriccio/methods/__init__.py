"""The methods: one file a paper, and the table of them, the best first."""

from capriccio.draft import Method
from capriccio.methods import diptych, inpainting, lar_gen, lar_gen_panel, regional_prompting, rpg

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        lar_gen.METHOD,
        diptych.METHOD,
        lar_gen_panel.METHOD,
        inpainting.METHOD,
        regional_prompting.METHOD,
        rpg.METHOD,
        diptych.JOINT,
    )
}

__all__ = ["METHODS", "Method"]
