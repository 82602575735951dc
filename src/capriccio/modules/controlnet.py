"""ControlNets of FLUX before they have learned anything: copies of a transformer's first blocks that add nothing."""

from __future__ import annotations

from inspect import signature

from diffusers import FluxControlNetModel, FluxTransformer2DModel


def new_controlnet(
    transformer: FluxTransformer2DModel, *, num_layers: int, num_single_layers: int, num_mode: int | None = None
) -> FluxControlNetModel:
    """Return an untrained ControlNet of a transformer (``from_transformer`` of diffusers knows no union).

    Args:
        transformer: The frozen base.
        num_layers: Double blocks to copy.
        num_single_layers: Single blocks to copy.
        num_mode: Kinds of control picture of a union; ``None`` makes it a plain one.
    """
    known = signature(FluxControlNetModel.__init__).parameters
    config = {key: value for key, value in transformer.config.items() if key in known}
    own = {"num_layers": num_layers, "num_single_layers": num_single_layers, "num_mode": num_mode}
    controlnet = FluxControlNetModel(**config | own)
    shared = {key: value for key, value in transformer.state_dict().items() if key in controlnet.state_dict()}
    controlnet.load_state_dict(shared, strict=False)
    return controlnet
