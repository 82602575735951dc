"""Guidance equations: coefficients that sum to 1, branches that are needed, and diffusers' order of operations."""

from __future__ import annotations

import pytest
import torch

from capriccio.errors import CapriccioError
from capriccio.guidance import Chain, Step, classifier_free

INSTRUCTIONS = Chain(
    "empty", (Step("empty", "picture", 1.5), Step("picture", "both", 7.5))
)  # InstructPix2Pix, arXiv 2211.09800, eq. 3


@pytest.fixture
def predictions() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    roles = ("negative", "positive", "empty", "picture", "both")
    return {role: torch.randn(2, 5, 3, generator=generator) for role in roles}


@pytest.mark.parametrize("chain", [classifier_free(1), classifier_free(3.5), INSTRUCTIONS])
def test_coefficients_sum_to_one(chain: Chain) -> None:
    assert sum(chain.coefficients.values()) == pytest.approx(1)


@pytest.mark.parametrize("chain", [classifier_free(3.5), INSTRUCTIONS])
def test_the_chain_is_the_sum_of_its_coefficients(chain: Chain, predictions: dict[str, torch.Tensor]) -> None:
    total = sum(factor * predictions[role] for role, factor in chain.coefficients.items())
    torch.testing.assert_close(chain.combine(predictions), total, rtol=1e-5, atol=1e-5)


def test_classifier_free_guidance_is_diffusers_to_the_last_bit(predictions: dict[str, torch.Tensor]) -> None:
    positive, negative = predictions["positive"], predictions["negative"]
    assert torch.equal(classifier_free(3.7).combine(predictions), negative + 3.7 * (positive - negative))


def test_a_scale_of_one_needs_one_branch_and_returns_it_untouched(predictions: dict[str, torch.Tensor]) -> None:
    chain = classifier_free(1)
    assert chain.roles == ("positive",)
    assert chain.combine({"positive": predictions["positive"]}) is predictions["positive"]
    assert str(chain) == "positive"


def test_branches_with_coefficient_zero_are_skipped(predictions: dict[str, torch.Tensor]) -> None:
    chain = Chain("empty", (Step("empty", "picture", 1), Step("picture", "both", 7.5)))
    assert set(chain.roles) == {"picture", "both"}


def test_a_skipped_base_is_never_asked_for(predictions: dict[str, torch.Tensor]) -> None:
    chain = Chain("empty", (Step("empty", "picture", 1), Step("picture", "both", 7.5)))
    needed = {role: predictions[role] for role in chain.roles}
    picture, both = predictions["picture"], predictions["both"]
    torch.testing.assert_close(chain.combine(needed), picture + 7.5 * (both - picture), rtol=1e-5, atol=1e-5)


def test_equal_scales_skip_the_middle(predictions: dict[str, torch.Tensor]) -> None:
    chain = Chain("empty", (Step("empty", "picture", 4), Step("picture", "both", 4)))
    assert set(chain.roles) == {"empty", "both"}
    needed = {role: predictions[role] for role in chain.roles}
    empty, both = predictions["empty"], predictions["both"]
    torch.testing.assert_close(chain.combine(needed), empty + 4 * (both - empty), rtol=1e-5, atol=1e-5)


def test_positive_is_predicted_first_as_in_diffusers() -> None:
    assert classifier_free(4).roles == ("positive", "negative")


def test_it_prints_as_an_equation() -> None:
    assert str(classifier_free(3.5)) == "negative + 3.5 (positive - negative)"


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(CapriccioError, match="starts at 1"):
        classifier_free(0.5)
