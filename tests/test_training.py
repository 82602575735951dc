"""The trainer: what is interrupted and resumed is what would have been; masks keep Diptych Prompting zero-shot."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from capriccio.errors import CapriccioError
from capriccio.objectives import (
    as_diffused,
    contrastive,
    diffused,
    flow_matching_pair,
    gaussian_kl,
    gradient_l1,
    masked_mean,
    noise_weight,
    pyramid_l1,
    velocity_of_noise,
)
from capriccio.recipes.flux import Size, grid_ids, new_transformer
from capriccio.training import optimisers, trainer
from capriccio.training.optimisers import Muon, muon_and_adamw, orthogonalise, warm_constant_decay
from capriccio.training.trainer import (
    CHECKPOINT,
    LOG,
    Average,
    Batch,
    Batches,
    Row,
    Schedule,
    chosen_precision,
    compile_blocks,
    fit,
    minutes_learned,
    read_table,
    steps_learned,
    write_table,
)


@dataclass
class LineTask:
    """Learn a line; small enough to train in a blink."""

    schedule: Schedule
    fail_at: int | None = None
    name: str = "line"
    calls: int = 0

    def models(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))

    def optimisers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        return muon_and_adamw(model, lambda name, value: name.startswith("0"), muon_lr=0.02, adamw_lr=0.02)

    def batch(self, rng: np.random.Generator) -> Batch:
        x = torch.from_numpy(rng.normal(size=(16, 4))).float()
        return {"x": x, "y": x.sum(1, keepdim=True)}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        return loss, {"error": loss.sqrt()}

    def save(self, model: nn.Module, folder: Path) -> None:
        torch.save(model.state_dict(), folder / "weights.pt")

    def measure(self, model: nn.Module) -> list[Row]:
        return []


SHORT = Schedule(minutes=10, steps=24, warmup=4)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = fit(LineTask(SHORT), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(LineTask(SHORT, fail_at=11), tmp_path / "broken")
    resumed = fit(LineTask(SHORT), tmp_path / "broken")
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not list(tmp_path.rglob("*.tmp"))


# --- several batches of one step ---


@dataclass
class PartsTask(LineTask):
    """The rows of each batch of sixteen, in so many parts, one after the other."""

    drawn: int = -1  # the trainer draws one batch for nothing, that pools be filled

    def batch(self, rng: np.random.Generator) -> Batch:
        step, part = divmod(self.drawn, self.schedule.accumulation)
        self.drawn += 1
        whole = super().batch(np.random.default_rng([1, step + 1]))
        return {name: value.chunk(self.schedule.accumulation)[part] for name, value in whole.items()}


def test_two_halves_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    exact = replace(SHORT, precision="no")  # a processor with bfloat16 would use it
    whole = fit(PartsTask(exact), tmp_path / "whole")
    halves = fit(PartsTask(replace(exact, accumulation=2)), tmp_path / "halves")
    for left, right in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(left, right)
    assert steps_learned(tmp_path / "halves") == SHORT.steps


def test_a_resumed_run_sees_the_parts_that_it_would_have_seen(tmp_path: Path) -> None:
    several = replace(SHORT, accumulation=3)
    whole = fit(LineTask(several), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(LineTask(several, fail_at=3 * 10 + 2), tmp_path / "broken")  # in the middle of a step
    assert steps_learned(tmp_path / "broken") == 10
    resumed = fit(LineTask(several), tmp_path / "broken")
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_one_part_is_the_batch_that_it_was_before_there_were_parts() -> None:
    batches = Batches(LineTask(replace(SHORT, seed=3)), rank=1)
    before = LineTask(SHORT).batch(np.random.default_rng([3, 7, 1]))
    assert torch.equal(batches[7]["x"], before["x"])
    parts = Batches(LineTask(replace(SHORT, seed=3, accumulation=2)), rank=1)
    assert torch.equal(parts[14]["x"], before["x"])
    assert not torch.equal(parts[15]["x"], before["x"])


def test_schedules_that_cannot_be_are_sentences() -> None:
    with pytest.raises(CapriccioError, match="did you mean 'bf16'"):
        Schedule(minutes=1, precision="bf1")  # type: ignore[arg-type]
    with pytest.raises(CapriccioError, match="1 batch a step or more"):
        Schedule(minutes=1, accumulation=0)


# --- precision ---


def test_half_precision_is_used_where_it_is_asked_for(tmp_path: Path) -> None:
    single = fit(LineTask(replace(SHORT, precision="no")), tmp_path / "single")
    AcceleratorState._reset_state(reset_partial_state=True)
    half = fit(LineTask(replace(SHORT, precision="bf16")), tmp_path / "half")
    pairs = list(zip(single.parameters(), half.parameters(), strict=True))
    assert any(not torch.equal(left, right) for left, right in pairs)
    for left, right in pairs:
        assert right.dtype == torch.float32
        torch.testing.assert_close(left, right, rtol=0.2, atol=0.1)


def test_precision_is_the_one_asked_for_or_a_sentence() -> None:
    assert chosen_precision("bf16", "cpu") == "bf16"
    assert chosen_precision("no", "cuda") == "no"
    assert chosen_precision("auto", "cuda") == "bf16"
    assert chosen_precision("fp16", "cuda") == "fp16"
    with pytest.raises(CapriccioError, match="needs a GPU"):
        chosen_precision("fp16", "cpu")


# --- compiled blocks ---


class Repeated(nn.Linear):
    """A model of diffusers, as far as compiling goes: it says which of its blocks repeat."""

    _repeated_blocks = ("Block",)

    def compile_repeated_blocks(self, **settings: object) -> None:
        self.settings = settings


@dataclass
class RepeatedTask(LineTask):
    """A line behind a model that has blocks."""

    def models(self) -> nn.Module:
        self.made = nn.Sequential(Repeated(4, 8), nn.Linear(8, 1))
        return self.made


def test_blocks_are_compiled_where_that_is_asked_for(tmp_path: Path) -> None:
    for compiled, settings in ((True, {"dynamic": True}), (False, None)):
        AcceleratorState._reset_state(reset_partial_state=True)
        task = RepeatedTask(replace(SHORT, steps=2, compiled=compiled))
        fit(task, tmp_path / str(compiled))
        assert getattr(task.made[0], "settings", None) == settings


def test_what_others_learn_through_is_compiled_too() -> None:
    still = Repeated(4, 8).requires_grad_(False)
    compile_blocks(nn.Sequential(still, nn.Linear(8, 1)))
    assert still.settings == {"dynamic": True}


def test_what_has_no_blocks_cannot_be_compiled() -> None:
    with pytest.raises(CapriccioError, match="leave --compile out"):
        compile_blocks(nn.Linear(4, 8))


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    """The real thing: a small transformer of FLUX, compiled by the machine's own compiler, takes the same steps."""
    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = new_transformer(Size(heads=1, double=1, single=2))
        if compiled:
            compile_blocks(model)
        learner = torch.optim.SGD(model.parameters(), lr=0.1)
        for side in (2, 4):  # pictures of two sizes, one compilation
            rng = torch.Generator().manual_seed(side)
            painted = model(
                hidden_states=torch.randn(2, side * side, 32, generator=rng),
                encoder_hidden_states=torch.randn(2, 5, 64, generator=rng),
                pooled_projections=torch.randn(2, 192, generator=rng),
                timestep=torch.tensor([0.3, 0.6]),
                img_ids=grid_ids(side, side),
                txt_ids=torch.zeros(5, 3),
                return_dict=False,
            )[0]
            (painted - 1).square().mean().backward()
            learner.step()
            learner.zero_grad()
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


# --- what is kept ---


class FrozenTask(LineTask):
    """The first layer stays as it is."""

    def models(self) -> nn.Module:
        model = super().models()
        model[0].requires_grad_(False)  # type: ignore[index]
        return model


def test_a_checkpoint_holds_what_learns(tmp_path: Path) -> None:
    whole = fit(FrozenTask(SHORT), tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / CHECKPOINT, weights_only=True)
    assert state["model"].keys() == state["average"].keys() == {"1.weight", "1.bias"}
    with pytest.raises(KeyboardInterrupt):
        fit(FrozenTask(SHORT, fail_at=11), tmp_path / "broken")
    resumed = fit(FrozenTask(SHORT), tmp_path / "broken")
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_checkpoints_of_earlier_versions_go_on(tmp_path: Path) -> None:
    """They hold the whole module, in both places."""
    whole = fit(FrozenTask(SHORT), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(FrozenTask(SHORT, fail_at=11), tmp_path / "broken")
    state = torch.load(tmp_path / "broken" / CHECKPOINT, weights_only=True)
    first = FrozenTask(SHORT).models().state_dict()
    earlier = state | {name: first | state[name] for name in ("model", "average")}
    torch.save(earlier, tmp_path / "broken" / CHECKPOINT)
    resumed = fit(FrozenTask(SHORT), tmp_path / "broken")
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_checkpoint_of_another_model_is_a_sentence(tmp_path: Path) -> None:
    fit(LineTask(replace(SHORT, steps=1)), tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for change in ({"strange": torch.zeros(1)}, {"1.bias": torch.zeros(5)}):
        torch.save(state | {"model": state["model"] | change}, tmp_path / CHECKPOINT)
        with pytest.raises(CapriccioError, match="of another model"):
            fit(LineTask(SHORT), tmp_path)
    del state["model"]["1.bias"]
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(CapriccioError, match="of another model"):
        fit(LineTask(SHORT), tmp_path)


def test_how_far_a_folder_is(tmp_path: Path) -> None:
    assert (steps_learned(tmp_path), minutes_learned(tmp_path)) == (None, None)
    fit(LineTask(replace(SHORT, steps=3)), tmp_path)
    assert steps_learned(tmp_path) == 3
    assert minutes_learned(tmp_path) > 0  # type: ignore[operator]


# --- the log ---


def steps_of(folder: Path) -> list[float]:
    return [row["step"] for row in read_table(folder / LOG)]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.Log.__init__, "__defaults__", (4,))


@pytest.mark.usefixtures("often")
def test_the_log_has_each_step_once_whatever_interrupts(tmp_path: Path) -> None:
    fit(LineTask(SHORT), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(LineTask(SHORT, fail_at=19), tmp_path / "broken")
    assert steps_of(tmp_path / "broken") == [4, 8, 12, 16]
    state = torch.load(tmp_path / "broken" / CHECKPOINT, weights_only=True)
    torch.save(state | {"step": 9}, tmp_path / "broken" / CHECKPOINT)  # killed: its checkpoint is older than its log
    fit(LineTask(SHORT), tmp_path / "broken")
    assert steps_of(tmp_path / "broken") == steps_of(tmp_path / "whole") == [4, 8, 12, 16, 20, 24]
    header, *rows = (tmp_path / "broken" / LOG).read_text().splitlines()
    assert header == "step,minutes,loss,error"
    assert all(len(row.split(",")) == 4 for row in rows)


def test_a_table_has_room_for_readings_that_come_later(tmp_path: Path) -> None:
    rows = [{"step": 1, "one": 0.5}, {"step": 2, "two": 0.25}]
    write_table(rows, tmp_path / LOG)
    assert (tmp_path / LOG).read_text() == "step,one,two\n1,0.5,\n2,,0.25\n"
    assert read_table(tmp_path / LOG) == rows


@pytest.mark.usefixtures("often")
def test_tensorboard_is_told_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(LineTask(SHORT), tmp_path / "with")
    told = events.EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    told.Reload()
    assert [event.step for event in told.Scalars("loss")] == [4, 8, 12, 16, 20, 24]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    fit(LineTask(SHORT), tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()
    assert steps_of(tmp_path / "without") == steps_of(tmp_path / "with")


# --- what it learns ---


def test_batches_made_by_other_hands_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = fit(LineTask(SHORT), tmp_path / "alone")
    monkeypatch.setattr(trainer, "spare_hands", lambda budget, processes: 2)
    helped = fit(LineTask(SHORT), tmp_path / "helped")
    for left, right in zip(alone.parameters(), helped.parameters(), strict=True):
        assert torch.equal(left, right)


def test_learning_lowers_the_loss(tmp_path: Path) -> None:
    task = LineTask(replace(SHORT, steps=300, average=0.9))
    before, _ = task.loss(task.models(), task.batch(np.random.default_rng(1)), torch.Generator())
    after, _ = task.loss(fit(task, tmp_path), task.batch(np.random.default_rng(1)), torch.Generator())
    assert after < 0.1 * before


def test_muon_takes_the_matrices_it_is_given() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    muon, adamw = muon_and_adamw(model, lambda name, value: name.startswith("0"))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(8, 4)]
    assert len(adamw.param_groups[0]["params"]) == 3


@pytest.mark.parametrize("shape", [(2, 6, 20), (2, 20, 6), (1, 8, 8)])
def test_orthogonalised_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_steps_kernels_by_a_known_size() -> None:
    kernel = nn.Parameter(torch.zeros(8, 4, 3, 3))
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    Muon([kernel], lr=0.1, weight_decay=0.0).step()
    moved = torch.linalg.svdvals(kernel.detach().flatten(1)) / (0.1 * 0.2 * 36**0.5)
    assert moved.min() > 0.6
    assert moved.max() < 1.3
    assert (kernel.detach() * kernel.grad).sum() < 0


def test_coarse_scales_see_what_a_checkerboard_hides() -> None:
    board = (torch.arange(64).view(8, 8) + torch.arange(8)[:, None]) % 2 * 2.0 - 1
    fine = board.view(1, 1, 8, 8)
    flat = torch.ones(1, 1, 8, 8)
    zero = torch.zeros(1, 1, 8, 8)
    assert pyramid_l1(fine, zero).item() == 1.0
    assert pyramid_l1(flat, zero).item() == 3.0


def test_schedule_of_the_learning_rate() -> None:
    assert warm_constant_decay(0.0, 0, warmup=200) == pytest.approx(1 / 200)
    assert warm_constant_decay(0.5, 1000) == 1.0
    assert warm_constant_decay(1.0, 1000) == pytest.approx(0.02)
    assert warm_constant_decay(0.825, 1000) == pytest.approx(0.51)


def test_average_follows_then_lags() -> None:
    model = nn.Linear(1, 1)
    average = Average(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for step in range(1000):
        average.update(model, step)
    assert torch.allclose(average.state["weight"], model.weight)


def test_flow_matching_by_hand() -> None:
    noisy, velocity = flow_matching_pair(torch.tensor([[2.0]]), torch.tensor([[6.0]]), torch.tensor([0.25]))
    assert noisy.item() == 3.0
    assert velocity.item() == 4.0


@given(sigma=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_a_sample_of_flow_is_one_of_diffusion_and_its_noise_a_velocity(sigma: float, seed: int) -> None:
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    level = torch.full((3,), sigma, dtype=torch.float64)
    alphas = torch.linspace(0.9999, 0.001, 4000, dtype=torch.float64)
    noisy, velocity = flow_matching_pair(clean, noise, level)
    sample, times = as_diffused(noisy, level, alphas)
    there = alphas[times.floor().long()].lerp(alphas[times.ceil().long()], times.frac())
    assert torch.allclose(sample, diffused(clean, noise, there), atol=1e-3)
    assert torch.allclose(velocity_of_noise(noisy, noise, level), velocity)


def test_levels_beyond_the_times_of_diffusion_get_the_nearest() -> None:
    alphas = torch.tensor([0.9, 0.5, 0.1])
    _, times = as_diffused(torch.ones(3, 1), torch.tensor([0.001, 0.5, 0.999]), alphas)
    assert times.tolist() == pytest.approx([0.0, 1.0, 2.0], abs=1e-6)


def test_losses_by_hand() -> None:
    assert gaussian_kl(torch.zeros(3), torch.zeros(3)).item() == 0.0
    assert gaussian_kl(torch.ones(3), torch.zeros(3)).item() == 0.5
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert gradient_l1(ramp, torch.zeros_like(ramp)).item() == 1.0
    assert masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])).item() == 2.0
    apart = contrastive(torch.eye(4), torch.eye(4), 50.0)
    mixed = contrastive(torch.eye(4), torch.eye(4).roll(1, 0), 50.0)
    assert apart < 1e-6 < mixed


@pytest.mark.parametrize(("rows", "columns", "share"), [(1, 1, 0.5), (1, 2, 0.6), (2, 2, 0.6)])
def test_no_mask_hides_a_whole_panel(rows: int, columns: int, share: float) -> None:
    from capriccio.recipes.masks import hole, random_mask

    rng = np.random.default_rng(0)
    parts = np.zeros((16 * rows, 16 * columns), np.uint8)
    parts[4::16, 2::16] = parts[9::16, 7::16] = 7  # one thing in every panel
    shares, around = [], []
    for number in range(600):
        if number % 2:
            mask = random_mask(rng, rows, columns, size=64)
        else:
            mask = hole(rng, rows, columns, parts, 4)
            hidden = mask[0, 16::64, 8::64].bool() & mask[0, 36::64, 28::64].bool()
            around.append(int(hidden.sum()))
        assert mask.shape == (1, 64 * rows, 64 * columns)
        panels = mask.view(rows, 64, columns, 64).mean(dim=(1, 3))
        assert panels.max() <= (share if number % 2 else 0.6)
        if number % 2:
            shares.append(float(mask.mean()))
    assert 0.03 < np.mean(np.array(shares) == 0) < 0.2
    assert np.mean(shares) > 0.05
    assert np.mean(np.array(around) >= 1) > 0.5  # half around a thing, and some by chance
    assert np.mean(np.array(around) > 1) < 0.2


def test_attention_of_short_sequences_is_left_as_it_was_found() -> None:
    before = torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
    query = torch.randn(1, 2, 8, 16)
    fused = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    with trainer._short_attention():
        assert not torch.backends.cuda.flash_sdp_enabled()
        plain = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert torch.allclose(fused, plain, atol=1e-5)
    assert (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def test_half_precision_is_asked_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert optimisers.quick_dtype() == expected


def test_no_stage_of_painting_counts_for_nothing() -> None:
    """Velocity's weight in the middle, bounded where nearly all is noise, falling where hardly any is."""
    alpha = torch.linspace(0.0047, 0.9991, 200)
    weights = noise_weight(alpha, most=3, snr_cap=25)
    snr = alpha / (1 - alpha)
    middle = (alpha > 1 / 3) & (snr < 25)
    torch.testing.assert_close(weights[middle], 1 + 1 / snr[middle])
    assert (weights[alpha < 1 / 3] == 3).all()
    torch.testing.assert_close(weights[snr > 25], 25 / snr[snr > 25] / alpha[snr > 25])
    assert (weights.diff() <= 1e-6).all()
