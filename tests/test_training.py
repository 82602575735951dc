"""The trainer: what is interrupted and resumed is what would have been; masks keep Diptych Prompting zero-shot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capriccio.objectives import (
    contrastive,
    flow_matching_pair,
    gaussian_kl,
    gradient_l1,
    masked_mean,
    noise_weight,
    pyramid_l1,
)
from capriccio.training import optimisers, trainer
from capriccio.training.optimisers import Muon, muon_and_adamw, orthogonalise, warm_constant_decay
from capriccio.training.trainer import Average, Batch, Row, Schedule, fit


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
    from capriccio.recipes.masks import random_mask

    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        mask = random_mask(rng, rows, columns, size=64)
        assert mask.shape == (1, 64 * rows, 64 * columns)
        panels = mask.view(rows, 64, columns, 64).mean(dim=(1, 3))
        assert panels.max() <= share
        shares.append(float(mask.mean()))
    assert 0.03 < np.mean(np.array(shares) == 0) < 0.2
    assert np.mean(shares) > 0.05


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
