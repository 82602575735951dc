"""Model families, wrapped and never forked: diffusers' components and the few facts that a method needs."""

from capriccio.backbones.base import Backbone, Defaults, Inputs, Known, Text

__all__ = ["Backbone", "Defaults", "Inputs", "Known", "Text"]
