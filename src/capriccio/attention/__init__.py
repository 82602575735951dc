"""The attention program: edits over named token groups, compiled to exact fused calls.

program = AttentionProgram((Weigh("image:right", "image:left", 1.3),))
compiled = compile_program(program, layout, layers=layers_of(transformer), num_steps=30)
with attach(transformer, compiled) as attachment:
    attachment.set(step=0, roles=("positive",))

What is where: `program` says what can be asked (the grammar), `layout` where the tokens are, `choose` which fused
calls compute it exactly, `compile` for which layer, step and row; `forms` runs it and holds the literal formula,
`slots` keeps a layer's state, `flux` and `unet` are the interface families, `processors` installs and restores.

Edits to come have their places:

* ``match`` (AdaIN of Q and K to a reference row) works on the whole batch before a slot divides it into parts: the
  first lines of `Slot.attend`, for a reference row and its followers may run different forms; on FLUX before the
  rotation, which the processor then leaves to the slot.
* ``follow`` (the weights of another row) is a `Look` whose queries and keys are taken from the source row: a part
  gains the rows that its own follow, and `Call.run` takes Q and K from those and V from its own.
* ``fold`` (rows share one sequence) reshapes rows into tokens at the entry of `Slot.attend` and back at its exit, and
  repeats the layout once for each row in `compile_program`.
"""

from capriccio.attention.choose import choose_form
from capriccio.attention.compile import CompiledProgram, compile_program
from capriccio.attention.forms import Form, literal
from capriccio.attention.layout import Layout, PictureLayout, Sides, TokenLayout
from capriccio.attention.processors import Attachment, attach, layers_of
from capriccio.attention.program import (
    AttentionEdit,
    AttentionProgram,
    Bank,
    Bias,
    Features,
    Hide,
    KeyScale,
    LayerInfo,
    Layers,
    Mix,
    Scope,
    See,
    Steps,
    Tap,
    Twin,
    Weigh,
)
from capriccio.attention.slots import Tokens
from capriccio.attention.taps import Recorder

__all__ = [
    "Attachment",
    "AttentionEdit",
    "AttentionProgram",
    "Bank",
    "Bias",
    "CompiledProgram",
    "Features",
    "Form",
    "Hide",
    "KeyScale",
    "LayerInfo",
    "Layers",
    "Layout",
    "Mix",
    "PictureLayout",
    "Recorder",
    "Scope",
    "See",
    "Sides",
    "Steps",
    "Tap",
    "TokenLayout",
    "Tokens",
    "Twin",
    "Weigh",
    "attach",
    "choose_form",
    "compile_program",
    "layers_of",
    "literal",
]
