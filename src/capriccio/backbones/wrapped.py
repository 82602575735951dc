"""What wrapped pipelines of all families have in common: parts, places, text kept, LoRAs, fingerprints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from capriccio.attention import LayerInfo, layers_of
from capriccio.backbones import weights
from capriccio.backbones.base import Defaults, Stream, Text
from capriccio.backbones.limits import Limits, limited
from capriccio.errors import CapriccioError
from capriccio.scene import Lora

_TEXTS_KEPT = 256


class Wrapped:
    """A diffusers pipeline and the denoisers that paint with it; the pipeline is never changed.

    Attributes:
        pipe: The pipeline.
        name: What it is called.
        base: The denoiser that needs no known picture, or ``None``.
        fill: The denoiser that reads a known picture as input channels, or ``None``.
        controlnet: An inpainting ControlNet beside the base, or ``None``.
        controlnets: ControlNets that control pictures steer through, by name.
        defaults: Numbers to paint with.
        modules: What methods add to the model, by the name of the method.
        hooks: Of networks beside the pipeline that are offloaded.
    """

    main: str
    """Name of the denoiser among the pipeline's components."""
    defaults: Defaults

    def __init__(
        self,
        pipe: Any,
        name: str | None,
        base: Any,
        fill: Any,
        controlnet: Any = None,
        controlnets: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe = pipe
        self.name = name or str(getattr(pipe.config, "_name_or_path", None) or type(pipe).__name__)
        self.base, self.fill, self.controlnet = base, fill, controlnet
        self.controlnets: Mapping[str, Any] = controlnets or {}
        self.modules: dict[str, nn.Module] = {}
        self.hooks: tuple[Any, ...] = ()
        self._texts: OrderedDict[Any, Text] = OrderedDict()
        self._loras: tuple[Lora, ...] = ()

    # --- facts ---

    @property
    def factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.pipe.vae_scale_factor

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        return self.pipe.vae.config.latent_channels

    @property
    def engines(self) -> tuple[str, ...]:
        """Ways of inpainting at hand, the best first."""
        at_hand = {
            "controlnet": self.controlnet is not None and self.base is not None,
            "fill": self.fill is not None,
            "hold": self.base is not None,
        }
        return tuple(engine for engine in self.defaults.engines if at_hand[engine])

    @property
    def can_start_from_text(self) -> bool:
        """Whether there is a denoiser that needs no known picture."""
        return self.base is not None

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return torch.device(self.pipe._execution_device)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Every network, by name; one that is shared is there once."""
        found = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        found.pop("controlnet", None)  # it is one of those that follow, or several
        own = getattr(self.pipe, self.main)
        extra = {"controlnet": self.controlnet, "fill": self.fill}
        extra |= {f"controlnet/{name}": net for name, net in self.controlnets.items()}
        extra |= {f"module/{name}": module for name, module in self.modules.items()}
        return found | {name: part for name, part in extra.items() if part is not None and part is not own}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what is loaded that a person should read in every plan."""
        return ()

    @property
    def memory(self) -> int:
        """Bytes of all weights."""
        return sum(value.numel() * value.element_size() for part in self.parts.values() for value in part.parameters())

    def denoiser(self, engine: str | None) -> Any:
        """Return the network that paints with an engine (``None``: from text alone)."""
        return self.fill if engine == "fill" else self.base

    def layers(self, engine: str | None) -> tuple[LayerInfo, ...]:
        """Return its attention layers."""
        return layers_of(self.denoiser(engine))

    # --- text ---

    def keep_text(self, key: tuple[Any, ...], encode: Callable[[], Text]) -> Text:
        """Return the text of that key, encoded once for the LoRAs that are on."""
        key = (*key, self._loras)
        if key not in self._texts:
            self._texts[key] = encode()
            if len(self._texts) > _TEXTS_KEPT:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    # --- weights ---

    @contextmanager
    def adapters(
        self, engine: str | None, loras: Sequence[Lora], regions: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Limits]:
        """Put LoRAs on for the length of a ``with`` block, and restore what was there.

        Args:
            engine: Of the denoiser.
            loras: Files, folders or repositories, and their strengths.
            regions: For the regions that they name, what their token groups are called after ``image:`` and ``text:``.

        Yields:
            What is told the token layout of each forward, for the LoRAs of regions.
        """
        if not loras:
            yield Limits()
            return
        denoiser = self.denoiser(engine)
        others = [part for part in self.parts.values() if part is not denoiser]
        with weights.adapters(self.pipe_with(denoiser), loras) as names:
            self._loras = tuple(loras)
            try:
                pairs = zip(names, loras, strict=True)
                with limited(pairs, regions, denoiser, others, lambda name: self.stream(engine, name)) as limits:
                    yield limits
            finally:
                self._loras = ()

    def stream(self, engine: str | None, name: str) -> Stream | None:
        """Return which tokens pass a layer of the denoiser; ``None`` if what passes it is no token."""
        raise NotImplementedError

    def pipe_with(self, denoiser: Any) -> Any:
        """Return a pipeline that loads LoRAs into this denoiser (and into the text encoders)."""
        return self.pipe

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of the weights of each component."""
        return {name: weights.fingerprint(part) for name, part in self.parts.items()}

    def free(self) -> None:
        """Let offloaded models leave the device."""
        self.pipe.maybe_free_model_hooks()
        for hook in self.hooks:
            hook.offload()


def nets_of(pipe: Any) -> dict[str, Any]:
    """Return the ControlNets that a pipeline brings along, by the names of the folders they come from."""
    own = getattr(pipe, "controlnet", None)
    nets = [] if own is None else list(getattr(own, "nets", [own]))
    named: dict[str, Any] = {}
    for net in nets:
        origin = PurePath(str(net.config.get("_name_or_path") or "controlnet")).name
        names = chain([origin], (f"{origin}-{number}" for number in count(2)))
        named[next(name for name in names if name not in named)] = net
    return named


def check_alike(name: str, net: Any, denoiser: Any, settings: Sequence[str]) -> None:
    """Check that a ControlNet and a denoiser agree.

    Args:
        name: Of the ControlNet.
        net: The ControlNet.
        denoiser: What it adds to.
        settings: Names in both of their configurations.

    Raises:
        CapriccioError: If they do not: what it adds would not fit, or it reads another text.
    """
    for setting in settings:
        theirs, ours = (_plain(model.config.get(setting)) for model in (net, denoiser))
        if theirs != ours:
            raise CapriccioError(
                f"The ControlNet {name!r} has {setting} {theirs}, but the {type(denoiser).__name__} that it would "
                f"steer has {ours}; give a ControlNet that was trained with this model."
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
