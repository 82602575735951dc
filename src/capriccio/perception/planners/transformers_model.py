"""A chat model of transformers, on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capriccio.errors import CapriccioError
from capriccio.perception.planners.language import OTHERWISE, Message, Unreachable


@dataclass(frozen=True)
class LocalModel:
    """A chat model of transformers, loaded when first asked; its likeliest answer, word by word.

    Attributes:
        model: Repository or folder of a causal language model whose tokenizer has a chat template.
        max_new_tokens: Length of an answer; RPG's own is 1024.
        device: Where it runs.
    """

    model: str
    max_new_tokens: int = 1024
    device: str = "cpu"

    def __call__(self, messages: list[Message]) -> str:
        """Return the answer to a conversation.

        Raises:
            CapriccioError: If the model cannot be loaded, or is none to chat with.
        """
        import torch

        tokenizer, model = self._loaded
        if not getattr(tokenizer, "chat_template", None):
            raise Unreachable(f"{self.model!r} has no chat template, so that it cannot be asked; {OTHERWISE}.")
        try:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self.device)
        except Exception as error:
            # A template is a small program of the model's own, which may raise anything.
            raise Unreachable(
                f"The chat template of {self.model!r} refuses the planner's messages ({type(error).__name__}); "
                f"{OTHERWISE}."
            ) from None
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = os.path.expanduser(self.model)
        try:
            model = AutoModelForCausalLM.from_pretrained(folder).to(self.device).eval()
            return AutoTokenizer.from_pretrained(folder), model
        except (OSError, ValueError, KeyError):
            raise Unreachable(
                f"{self.model!r}, which plans pages, could not be loaded; connect to download it, check its name, "
                f"or {OTHERWISE}."
            ) from None


def local(model: str, max_new_tokens: int = 1024, device: str = "cpu") -> LocalModel:
    """Return what asks a chat model of transformers; it is loaded when first asked.

    Args:
        model: Repository or folder.
        max_new_tokens: Length of an answer, at least 1.
        device: Where it runs.

    Raises:
        CapriccioError: If the length is out of range.
    """
    if max_new_tokens < 1:
        raise CapriccioError(f"Received max_new_tokens={max_new_tokens}, but an answer has at least 1; 1024 is usual.")
    return LocalModel(model, max_new_tokens, device)
