"""The family as a graph: what is planned, what is trained again and why, and that nothing learned is lost."""

from __future__ import annotations

import graphlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from capriccio import assets
from capriccio.errors import Cancelled, CapriccioError
from capriccio.recipes import miniature
from capriccio.recipes.family import Member, Step, Trace, Wanted, in_order, judge, plan_family
from capriccio.recipes.miniature import FAMILY, ORDER, Order, plan, train, train_family, weights_hash
from capriccio.training.trainer import CHECKPOINT

ORIGIN = {"budget": "cpu", "seed": 0, "start": ""}
MINUTES = 10.0


def states(steps: list[Step]) -> dict[str, str]:
    return {step.name: str(step) for step in steps}


def wanted(name: str, needs: tuple[str, ...] = (), trace: Trace | None = None) -> Wanted:
    return Wanted(name, needs, MINUTES, ORIGIN | dict.fromkeys(needs, "1a"), trace)


def ended(*needs: str) -> Trace:
    return Trace(MINUTES, ORIGIN | dict.fromkeys(needs, "1a"), saved=True)


# --- the graph and its plan ---


def test_nothing_comes_before_what_it_needs() -> None:
    places = {name: place for place, name in enumerate(ORDER)}
    assert set(ORDER) == set(FAMILY)
    assert all(places[need] < places[name] for name, member in FAMILY.items() for need in member.before())
    assert in_order({"b": Member("", base="a"), "a": Member("")}) == ("a", "b")
    with pytest.raises(graphlib.CycleError):
        in_order({"a": Member("", needs=("b",)), "b": Member("", needs=("a",))})


def test_a_model_is_done_resumes_or_is_to_do() -> None:
    steps = plan_family(
        [
            wanted("vae", trace=ended()),
            wanted("clip", trace=Trace(4.0, ORIGIN)),
            wanted("reader"),
            wanted("flux", ("vae",), ended("vae")),
            wanted("old", trace=Trace(MINUTES)),
        ]
    )
    # A trace that does not say what it began from is gone on with; one that ended unsaved has its saving to do.
    assert states(steps) == {
        "vae": "done",
        "clip": "resumes at 40 %",
        "reader": "to do",
        "flux": "done",
        "old": "resumes at 100 %",
    }


def test_what_follows_a_model_to_be_trained_is_stale() -> None:
    steps = plan_family(
        [
            wanted("vae", trace=Trace(4.0, ORIGIN)),
            wanted("flux", ("vae",), ended("vae")),
            wanted("fill", ("vae", "flux"), ended("vae", "flux")),
            wanted("sd", ("vae",)),
        ]
    )
    assert states(steps) == {
        "vae": "resumes at 40 %",
        "flux": "stale: vae must be trained first",
        "fill": "stale: vae and flux must be trained first",
        "sd": "to do",
    }


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"vae": "2b"}, "stale: vae has changed"),
        ({"seed": 3}, "stale: its seed was 3"),
        ({"start": "here", "budget": "gpu"}, "stale: its budget was gpu, its start was here"),
    ],
)
def test_a_checkpoint_of_another_origin_is_stale_and_says_why(change: dict[str, object], state: str) -> None:
    assert str(judge(wanted("flux", ("vae",), Trace(4.0, ORIGIN | {"vae": "1a"} | change)))) == state


def test_more_minutes_go_on_and_fewer_are_done() -> None:
    assert str(judge(wanted("vae", trace=Trace(5.0, ORIGIN, saved=True)))) == "resumes at 50 %"
    assert str(judge(wanted("vae", trace=Trace(20.0, ORIGIN, saved=True)))) == "done"


# --- on the disk, with a worker that learns nothing ---


class Worker:
    """Writes a checkpoint and weights for each order, or stops where it is told to."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.stops: dict[str, Callable[[], int]] = {}
        self.generation = 0.0

    def __call__(self, order: Order) -> int:
        self.trained.append(order.name)
        order.run.mkdir(parents=True, exist_ok=True)
        stopped = order.name in self.stops
        torch.save({"elapsed": 60 * MINUTES * (0.4 if stopped else 1.0)}, order.run / CHECKPOINT)
        if stopped:
            return self.stops[order.name]()
        order.folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.full((2,), self.generation)}, order.folder / "model.safetensors")
        if order.name == "vae":
            latents = {"shift_factor": self.generation, "scaling_factor": 1.0}
            (order.folder / "config.json").write_text(json.dumps(latents))
        return 0


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Worker:
    found = Worker()
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "assets" / "__init__.py"))
    monkeypatch.setattr(miniature, "launch", found)
    return found


def orders(runs: Path) -> list[Order]:
    return [Order(name, runs / "runs", minutes=MINUTES) for name in ORDER]


def planned(runs: Path) -> dict[str, str]:
    return states(miniature.plan(orders(runs)))


def test_the_family_is_trained_once(worker: Worker, tmp_path: Path) -> None:
    said: list[str] = []
    assert set(planned(tmp_path).values()) == {"to do"}
    train_family(orders(tmp_path), said.append)
    assert worker.trained == list(ORDER)
    assert set(planned(tmp_path).values()) == {"done"}
    train_family(orders(tmp_path), said.append)
    assert worker.trained == list(ORDER)
    assert said == []


def test_an_interrupted_family_goes_on(worker: Worker, tmp_path: Path) -> None:
    def interrupted() -> int:
        raise Cancelled("Stopped.")

    worker.stops["flux"] = interrupted
    with pytest.raises(Cancelled):
        train_family(orders(tmp_path))
    assert planned(tmp_path)["flux"] == "resumes at 40 %"
    before, worker.stops = list(worker.trained), {}
    train_family(orders(tmp_path))
    assert worker.trained == [*before, *ORDER[ORDER.index("flux") :]]


def test_a_failure_stops_what_needs_it_and_nothing_else(worker: Worker, tmp_path: Path) -> None:
    said: list[str] = []
    worker.stops["flux"] = lambda: 1
    with pytest.raises(
        CapriccioError,
        match="Not trained: flux, fill, controlnet-inpaint, style-lora, controlnet-union",
    ):
        train_family(orders(tmp_path), said.append)
    assert "fill is left out: it needs flux." in said
    assert {"sd", "sd-inpaint"} <= set(worker.trained)
    assert not {"fill", "controlnet-inpaint"} & set(worker.trained)


def test_what_learned_from_something_else_is_set_aside_and_learned_again(worker: Worker, tmp_path: Path) -> None:
    train_family(orders(tmp_path))
    (tmp_path / "runs" / "gallery" / "shard").touch()
    worker.trained, worker.generation = [], 1.0
    train(Order("vae", tmp_path / "runs", minutes=2 * MINUTES))
    state = planned(tmp_path)
    assert (state["vae"], state["reader"]) == ("done", "done")
    assert (state["clip"], state["sd"]) == ("stale: vae has changed", "stale: clip must be trained first")
    assert state["sd-inpaint"] == "stale: clip and sd must be trained first"
    said: list[str] = []
    train_family(orders(tmp_path), said.append)
    assert not {"reader", "people-reader"} & set(worker.trained)
    assert (tmp_path / "runs" / "flux.old1" / CHECKPOINT).exists()
    assert any("flux begins anew, for vae has changed" in sentence for sentence in said)
    assert sum("gallery" in sentence for sentence in said) == 1
    assert not (tmp_path / "runs" / "gallery" / "shard").exists()
    assert set(planned(tmp_path).values()) == {"done"}


def test_a_vae_may_be_tuned_and_painters_need_not_learn_again(worker: Worker, tmp_path: Path) -> None:
    train_family(orders(tmp_path))
    before = weights_hash("vae"), weights_hash("vae-tune")
    worker.generation = 1.0
    train(Order("vae-tune", tmp_path / "runs", minutes=2 * MINUTES))
    assert weights_hash("vae") == before[0]
    assert weights_hash("vae-tune") != before[1]
    copy = miniature.weights_folder("flux") / "vae" / "model.safetensors"
    copy.parent.mkdir()
    copy.write_bytes((miniature.weights_folder("vae") / "model.safetensors").read_bytes())
    assert set(planned(tmp_path).values()) == {"done"}


def test_weights_replaced_from_elsewhere_are_put_back(worker: Worker, tmp_path: Path) -> None:
    train_family(orders(tmp_path))
    worker.trained, worker.generation = [], 1.0
    train(Order("clip", tmp_path / "others", minutes=MINUTES))
    assert planned(tmp_path)["clip"] == "resumes at 100 %"
    worker.trained, worker.generation = [], 0.0
    train_family(orders(tmp_path))
    assert worker.trained == ["clip"]  # the same weights again: whoever learned from them need not


def test_one_model_learns_from_what_is_there(worker: Worker, tmp_path: Path) -> None:
    for name in ("vae", "clip", "t5"):
        worker(Order(name, tmp_path / "others"))
    train(Order("flux", tmp_path / "runs"))
    with pytest.raises(CapriccioError, match=r"not there yet: sd\. Run `capriccio train miniature sd` first"):
        train(Order("sd-inpaint", tmp_path / "runs"))
    train(Order("sd-inpaint", tmp_path / "runs", start=tmp_path))  # its base is given
    assert worker.trained[-2:] == ["flux", "sd-inpaint"]


def test_a_fill_that_goes_on_still_reads_the_text_of_flux(tmp_path: Path) -> None:
    order = Order("fill", tmp_path, start=tmp_path)
    assert order.needs == ("vae", "clip", "flux")
    (tmp_path / "model_index.json").write_text("{}")  # a FLUX, whole
    assert order.needs == ("vae", "clip")


def test_what_is_fluxs_alone_others_are_refused(worker: Worker, tmp_path: Path) -> None:
    for name in ("vae", "clip", "t5"):
        worker(Order(name, tmp_path / "others"))
    for order, says in (
        (Order("sd", tmp_path, teacher=tmp_path), "'sd' has no teacher, only FLUX's has"),
        (Order("fill", tmp_path, start=tmp_path, teacher=tmp_path), "'fill' has no teacher"),
        (Order("flux", tmp_path, teacher=tmp_path), "is no folder of a Stable Diffusion"),
    ):
        with pytest.raises(CapriccioError, match=says):
            train(order)
    train(Order("flux", tmp_path / "runs", start=tmp_path))
    for part in ("unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        place = tmp_path / "sd" / part
        place.parent.mkdir(parents=True)
        place.write_text("{}")
    (step,) = plan([Order("flux", tmp_path / "runs", start=tmp_path, teacher=tmp_path / "sd")])
    assert step.state == "stale"  # what learned without is another training


def test_what_is_not_known_is_said_and_taken_as_it_is(worker: Worker, tmp_path: Path) -> None:
    for name in ("vae", "clip", "t5"):
        worker(Order(name, tmp_path / "others"))
    (tmp_path / "runs" / "gallery").mkdir(parents=True)
    worker(Order("flux", tmp_path / "runs"))  # as a version without records left it
    said: list[str] = []
    train(Order("flux", tmp_path / "runs"), said.append)
    assert any("does not say what it began from" in sentence for sentence in said)
    assert any("does not say which vae" in sentence for sentence in said)
    assert not (tmp_path / "runs" / "flux.old1").exists()
