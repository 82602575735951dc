"""What an attention edit costs: compiled forms beside plain fused attention and beside the literal formula.

    python benchmarks/attention.py                  # CPU: 4 heads x 64, float32
    python benchmarks/attention.py --device cuda    # FLUX.1 size: 24 heads x 128, 5,314 tokens, bfloat16
    python benchmarks/attention.py --json           # one JSON object a line

Every row carries `name`, `tokens`, `over_plain` (cost of the edit over the same thing without it),
`literal_over_compiled` (how many times faster than the plain formula) and `error` (against the formula in float32,
relative to its largest value). Times are taken in turn (plain, compiled, literal, plain, ...) and each ratio is the
median over the rounds, so that other work on the machine falls on all alike; it still widens the scatter. Memory is
the peak of live allocations, which does not scatter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch._C._profiler import _EventType
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from capriccio.attention import (
    AttentionEdit,
    AttentionProgram,
    Bias,
    CompiledProgram,
    See,
    Tap,
    TokenLayout,
    Weigh,
    attach,
    choose_form,
    compile_program,
    layers_of,
    literal,
)
from capriccio.attention.forms import literal_matrices, literal_weights
from capriccio.evaluation import reports
from capriccio.evaluation.timing import in_turn, ratio

DIPTYCH = Weigh("image:right", "image:left", 1.3)


@dataclass(frozen=True)
class Size:
    """A canvas of two panels side by side and the attention that runs on it."""

    text: int
    height: int
    width: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        """Number of tokens of the joint sequence."""
        return self.text + self.height * self.width


CANVAS = Size(256, 32, 64, 4, 64, torch.float32)  # 2,304 tokens
MINIATURE = Size(128, 8, 16, 4, 64, torch.float32)  # 256 tokens: the canvas of the miniature
FLUX = Size(512, 49, 98, 24, 128, torch.bfloat16)  # 5,314 tokens: the paper's canvas on FLUX.1


@dataclass(frozen=True)
class Row:
    """One result."""

    name: str
    tokens: int
    over_plain: float
    literal_over_compiled: float | None = None
    error: float | None = None


def panels(size: Size) -> TokenLayout:
    """Lay out text first, then the two panels as they lie on a canvas: interleaved row by row."""
    columns, rows = np.tile(np.arange(size.width), size.height), np.repeat(np.arange(size.height), size.width)
    sides = {"image:left": columns < size.width // 2, "image:right": columns >= size.width // 2}
    quarters = {f"quarter:{i}": rows * 4 // size.height == i for i in range(4)}
    text = np.arange(size.tokens) < size.text
    image = {name: np.concatenate([np.zeros(size.text, bool), mask]) for name, mask in (sides | quarters).items()}
    return TokenLayout(size.tokens, {"text": text, **image})


def core(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Call PyTorch's fused attention on (B, S, H, D)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def diptych_literal(size: Size, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute logits, softmax, block scale in place, product: the published formula without a copy to spare."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.transpose(-1, -2) * size.head_dim**-0.5).softmax(-1)
    grid, half = (size.height, size.width), size.width // 2
    image = weights[:, :, size.text :, size.text :].unflatten(3, grid).unflatten(2, grid)
    image[:, :, :, half:, :, :half] *= DIPTYCH.weight
    return (weights @ value).transpose(1, 2)


def attention_row(name: str, edits: Sequence[AttentionEdit], size: Size, rounds: int, device: str) -> Row:
    """Measure one edited attention call."""
    layout = panels(size)
    generator = torch.Generator().manual_seed(0)
    shape = (1, size.tokens, size.heads, size.head_dim)
    query, key, value = (torch.randn(shape, generator=generator).to(device, size.dtype) for _ in range(3))
    form = choose_form(edits, layout).to(torch.device(device))

    def compiled() -> Tensor:
        for reading in form.readings:
            reading.read(query, key, core)
        return form.run(query, key, value, core)

    visible, bias, weigh = (matrix.to(device) for matrix in literal_matrices(edits, layout))
    weigh = weigh.to(size.dtype)

    def formula() -> Tensor:
        if edits == [DIPTYCH]:
            return diptych_literal(size, query, key, value)
        return torch.einsum("bhqk,bkhd->bqhd", literal_weights(query, key, visible, bias) * weigh, value)

    times = in_turn((lambda: core(query, key, value, None), compiled, formula), rounds, device)
    expected = literal(query.float(), key.float(), value.float(), edits, layout)[0]
    error = float((compiled() - expected).abs().max() / expected.abs().max())
    return Row(name, size.tokens, ratio(times[1], times[0]), ratio(times[2], times[1]), error)


def attention_rows(size: Size, rounds: int, device: str) -> Iterable[Row]:
    """Measure every kind of edit at one size."""
    quarters = [f"quarter:{i}" for i in range(4)]
    programs: dict[str, list[AttentionEdit]] = {
        "diptych": [DIPTYCH],
        "see, 4 regions": [See(name, name) for name in quarters] + [See("text", ("text", "image"))],
        "bias, keys only": [Bias(("text", "image"), "image:left", 1.3)],
        "bias, one panel": [Bias("image:right", "image:left", 1.3)],
        "tap, one group": [Tap("t", "image:right", "image:left")],
    }
    for name, edits in programs.items():
        yield attention_row(name, edits, size, rounds, device)


def small_flux(size: Size, device: str) -> FluxTransformer2DModel:
    """Build a FLUX of 2 double and 4 single blocks; weights do not matter for time and memory."""
    torch.manual_seed(0)
    head = size.head_dim
    model = FluxTransformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=head,
        num_attention_heads=size.heads,
        joint_attention_dim=256,
        pooled_projection_dim=256,
        axes_dims_rope=(head // 8, head * 7 // 16, head * 7 // 16),
    )
    return model.eval().requires_grad_(False).to(device, size.dtype)


def inputs(size: Size, device: str) -> dict[str, Tensor]:
    """Return one forward's arguments."""
    generator = torch.Generator().manual_seed(0)
    numbers = {
        "hidden_states": (1, size.height * size.width, 32),
        "encoder_hidden_states": (1, size.text, 256),
        "pooled_projections": (1, 256),
        "timestep": (1,),
    }
    tensors = {name: torch.rand(s, generator=generator).to(device, size.dtype) for name, s in numbers.items()}
    grid = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(size.height), torch.arange(size.width))
    return tensors | {
        "img_ids": grid.to(device, size.dtype),
        "txt_ids": torch.zeros(size.text, 3).to(device, size.dtype),
    }


def compiled_diptych(model: FluxTransformer2DModel, size: Size, steps: int) -> CompiledProgram:
    """Compile the Diptych edit for a model."""
    return compile_program(AttentionProgram((DIPTYCH,)), panels(size), layers=layers_of(model), num_steps=steps)


def picture_row(size: Size, rounds: int, device: str, steps: int = 4) -> Row:
    """Measure a whole picture: all blocks over several steps, with the edit attached and told each step."""
    model, arguments = small_flux(size, device), inputs(size, device)
    compiled = compiled_diptych(model, size, steps)

    def stock() -> None:
        for _ in range(steps):
            model(**arguments)

    def edited() -> None:
        with attach(model, compiled) as attachment:
            for step in range(steps):
                attachment.set(step=step, roles=("positive",))
                model(**arguments)

    times = in_turn((stock, edited), rounds, device)
    return Row("whole picture, diptych", size.tokens, ratio(times[1], times[0]))


def memory_rows(size: Size, device: str) -> Iterable[Row]:
    """Compare the peak memory of one whole block of each kind with and without the edit."""
    model = small_flux(size, device)
    width = size.heads * size.head_dim
    image = torch.randn(1, size.height * size.width, width).to(device, size.dtype)
    text, temb = image[:, : size.text], torch.randn(1, width).to(device, size.dtype)
    ids = torch.cat([inputs(size, device)[name] for name in ("txt_ids", "img_ids")])
    rotation = model.pos_embed(ids)
    blocks = {"double": model.transformer_blocks[0], "single": model.single_transformer_blocks[0]}
    for kind, block in blocks.items():
        plain = peak(lambda block=block: block(image, text, temb, rotation), device)
        with attach(model, compiled_diptych(model, size, 1)):
            edited = peak(lambda block=block: block(image, text, temb, rotation), device)
        yield Row(f"memory of a {kind} block, diptych", size.tokens, edited / plain)


def peak(function: Callable[[], object], device: str) -> int:
    """Return the peak of bytes allocated while the function runs, above what was there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    live = most = 0
    for event in sorted(allocations(record.profiler.kineto_results.experimental_event_tree()), key=lambda e: e[0]):
        live += event[1]
        most = max(most, live)
    return most


def allocations(tree: Iterable) -> Iterable[tuple[int, int]]:
    """List (time, bytes, negative when freed) of every allocation below the events of a profile."""
    for event in tree:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from allocations(event.children)


def measure(device: str, rounds: int) -> Iterable[Row]:
    """Measure everything that belongs to a device."""
    size = FLUX if device == "cuda" else CANVAS
    yield from attention_rows(size, rounds, device)
    if device == "cpu":
        yield attention_row("diptych", [DIPTYCH], MINIATURE, rounds * 3, device)
    yield from memory_rows(size, device)
    yield picture_row(size, max(3, rounds // 2), device)
    if device == "cpu":
        yield picture_row(MINIATURE, rounds, device, steps=24)


def table_line(row: Row) -> str:
    """Format one row."""
    literal_ratio = "" if row.literal_over_compiled is None else f"{row.literal_over_compiled:.2f}"
    error = "" if row.error is None else f"{row.error:.1e}"
    return f"{row.name:38} {row.tokens:>7,} {row.over_plain:>11.3f} {literal_ratio:>22} {error:>9}"


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each, the median counts")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    arguments = parser.parse_args()
    rows = []
    if not arguments.json:
        print(f"{'name':38} {'tokens':>7} {'over_plain':>11} {'literal_over_compiled':>22} {'error':>9}")
    with torch.inference_mode():
        for row in measure(arguments.device, arguments.rounds):
            rows.append(asdict(row))
            print(json.dumps(asdict(row)) if arguments.json else table_line(row), flush=True)
    if not arguments.json:
        print("Ratios, median of rounds taken in turn; other work on the machine scatters them by a few per cent.")
    if arguments.save:
        reports.save(arguments.save, rows, reports.recipe(device=arguments.device, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
