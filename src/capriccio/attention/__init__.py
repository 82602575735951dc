"""The attention program: edits over named token groups, compiled to exact fused calls.

program = AttentionProgram((Weigh("image:right", "image:left", 1.3),))
compiled = compile_program(program, layout, layers=layers_of(transformer), num_steps=30)
with attach(transformer, compiled) as attachment:
    attachment.set(step=0, roles=("positive",))
"""

from capriccio.attention.compile import CompiledProgram, choose_form, compile_program
from capriccio.attention.forms import Form, literal
from capriccio.attention.processors import Attachment, attach, layers_of
from capriccio.attention.program import (
    AttentionEdit,
    AttentionProgram,
    Bias,
    Hide,
    LayerInfo,
    Layers,
    Scope,
    See,
    Steps,
    Tap,
    TokenLayout,
    Weigh,
)
from capriccio.attention.taps import Recorder

__all__ = [
    "Attachment",
    "AttentionEdit",
    "AttentionProgram",
    "Bias",
    "CompiledProgram",
    "Form",
    "Hide",
    "LayerInfo",
    "Layers",
    "Recorder",
    "Scope",
    "See",
    "Steps",
    "Tap",
    "TokenLayout",
    "Weigh",
    "attach",
    "choose_form",
    "compile_program",
    "layers_of",
    "literal",
]
