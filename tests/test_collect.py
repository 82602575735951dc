"""Data engines: what is made of a picture, and that nothing is lost, doubled or left to chance on the way."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from capriccio.cli import app
from capriccio.collect import Cast, Limits, Quadruplets, Settings, Stages, cast, collect_quadruplets, engine
from capriccio.collect import run as runs
from capriccio.collect.engines import _lost
from capriccio.collect.quadruplets import distinct, intersection_over_union, is_entity, misfit, quadruplets
from capriccio.collect.run import Run, heading, locked, read_journal
from capriccio.collect.shards import END, ParquetPlaces, TarPlaces, parquet_bytes, read_parquet, read_tar, tar_bytes
from capriccio.collect.sources import Listing, Unit, list_pictures, work
from capriccio.errors import CapriccioError
from capriccio.evaluation.quadruplets import rates, right_ones
from capriccio.perception.segment import Sighting
from capriccio.world.draw import draw
from capriccio.world.graph import sample_scene

few = settings(deadline=None, max_examples=25)
PARTS = ("source.png", "mask.png", "subject.png", "txt", "json")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def contents(out: Path) -> dict[str, Any]:
    """All that two runs must agree on."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name.startswith("quadruplets-")}
    manifest = json.loads((out / "manifest.json").read_text())
    manifest.pop("timings")
    return {**files, "manifest": manifest, "quarantine": (out / "quarantine.jsonl").read_bytes()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of the world in two folders, a copy, a link, and files that are no use."""
    root = tmp_path_factory.mktemp("world")
    (root / "deeper").mkdir()
    rng = np.random.default_rng(3)
    drawing = draw([sample_scene(rng, split="test") for _ in range(6)])
    for number, pixels in enumerate(drawing.pixels):
        array = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(root / ("deeper" if number % 2 else ".") / f"{number}.png")
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    (root / "link.png").symlink_to(root / "2.png")
    (root / "lost.png").symlink_to(root / "nowhere.png")
    (root / "linked").symlink_to(root / "deeper")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:400])
    (root / "words.jpg").write_text("no picture")
    Image.new("RGB", (1, 1)).save(root / "one.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(root / "film.gif", save_all=True, append_images=frames[1:])
    (root / "notes.txt").write_text("passed over")
    return root


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run makes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    collect_quadruplets(world, out, per_shard=4)
    return out


# --- one picture ---


class Told:
    """Stages that say what they were told to."""

    def __init__(self, finds: dict[str, list[tuple[tuple[float, ...], float]]], text: str = "a thing") -> None:
        self.finds, self.text = finds, text

    def tags(self, image: Image.Image) -> list[str]:
        return list(self.finds)

    def boxes(self, image: Image.Image, name: str) -> list[Sighting]:
        return [Sighting(*find) for find in self.finds[name]]

    def inside(self, image: Image.Image, box: Sequence[float]) -> np.ndarray:
        mask = np.zeros((image.height, image.width), bool)
        left, top, right, bottom = map(int, box)
        mask[top:bottom, left:right] = True
        return mask

    def caption(self, image: Image.Image, box: Sequence[float]) -> str:
        return self.text


def found(finds: dict[str, list[tuple[tuple[float, ...], float]]], text: str = "a thing", **limits: float) -> Any:
    told = Told(finds, text)
    return quadruplets(Image.new("RGB", (100, 50), "navy"), Stages(told, told, told, told), Limits(**limits))


def test_a_quadruplet_is_a_picture_a_mask_a_subject_and_words() -> None:
    (one,) = found({"mug": [((20, 10, 40, 40), 0.9)]}).quadruplets
    assert (one.text, one.tag) == ("a thing", "mug")
    assert one.mask.size == one.source.size
    assert one.mask.getbbox() == (20, 10, 40, 40)
    assert one.subject.size == (31, 31)  # 30 pixels high, times 1.02
    assert one.subject.getpixel((0, 0)) == (255, 255, 255)
    assert one.subject.getpixel((15, 15)) == (0, 0, 128)


@pytest.mark.parametrize(
    ("finds", "text", "reason"),
    [
        ({"blue sky": [((20, 10, 40, 40), 0.9)]}, "a thing", "no thing"),
        ({"mug": [((20, 10, 40, 40), 0.1)]}, "a thing", "unsure"),
        ({"mug": [((20, 10, 20, 10), 0.9)]}, "a thing", "no outline"),
        ({"mug": [((20, 10, 22, 12), 0.9)]}, "a thing", "too small"),
        ({"mug": [((0, 0, 100, 49), 0.9)]}, "a thing", "too large"),
        ({"mug": [((20, 10, 40, 40), 0.9)]}, "", "no words"),
    ],
)
def test_what_is_no_use_is_dropped_and_counted(finds: Any, text: str, reason: str) -> None:
    result = found(finds, text)
    assert result.quadruplets == ()
    assert result.dropped == {reason: 1}


def test_one_thing_under_two_tags_is_one_thing_and_two_of_a_tag_are_two() -> None:
    box, other = (20.0, 10.0, 40.0, 40.0), (60.0, 10.0, 80.0, 40.0)
    result = found({"cup": [(box, 0.5)], "mug": [((20, 10, 40, 39), 0.9), (other, 0.4)]})
    assert [one.tag for one in result.quadruplets] == ["mug", "mug"]
    assert result.dropped == {"same thing twice": 1}


@pytest.mark.parametrize(("tag", "thing"), [("Dog", True), ("teddy bear", True), ("Sky", False), ("bare skin", False)])
def test_places_and_materials_are_no_things(tag: str, thing: bool) -> None:
    assert is_entity(tag, Stages(*[Told({})] * 4).non_entities) is thing


edges = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
boxes = edges.map(lambda one: (one[0], one[1], one[0] + one[2], one[1] + one[3]))


@few
@given(st.lists(st.tuples(boxes, st.floats(0, 1)), max_size=8), st.floats(0.05, 1))
def test_no_two_kept_finds_overlap_and_every_dropped_one_had_a_better(finds: Any, most: float) -> None:
    told = [("thing", Sighting(box, score)) for box, score in finds]
    kept = distinct(told, most)
    for index, (_, one) in enumerate(kept):
        assert all(intersection_over_union(one.box, other.box) < most for _, other in kept[:index])
    for find in told:
        better = [other for _, other in kept if other.score >= find[1].score]
        assert find in kept or any(intersection_over_union(find[1].box, one.box) >= most for one in better)


@few
@given(boxes, boxes)
def test_overlap_is_symmetric_and_whole_only_with_itself(one: Any, other: Any) -> None:
    assert intersection_over_union(one, other) == intersection_over_union(other, one)
    assert (intersection_over_union(one, other) == 1) == (one == other)


def test_limits_that_nothing_meets_get_a_sentence() -> None:
    assert misfit(np.eye(4, dtype=bool), Limits(least_share=0.25, most_share=0.3)) is None
    with pytest.raises(CapriccioError, match=r"least_share received 0.5 and most_share 0.5"):
        Limits(least_share=0.5, most_share=0.5)
    with pytest.raises(CapriccioError, match="overlap received 7; give a share between 0 and 1"):
        Limits(overlap=7)


# --- the world ---


def test_the_worlds_stages_find_what_is_true(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    graphs = [sample_scene(rng, subjects=subjects, split="test") for subjects in (1,) * 18 + (2,) * 4]
    cases = []
    for number, graph in enumerate(graphs):
        drawing = draw([graph])
        array = ((drawing.pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / f"{number}.png")
        unit = work(tmp_path, Settings(), "cpu", f"{number}.png")
        finds = [(opened(one, "mask.png") > 0, one["txt"].decode()) for one in unit.records]
        cases.append((graph, list(drawing.subjects[0].numpy()), finds))
    judged = rates(cases)
    assert judged.precision >= 0.85
    assert judged.recall >= 0.85


def test_a_find_with_wrong_words_or_a_wrong_place_is_not_right() -> None:
    graph = sample_scene(np.random.default_rng(1), split="test", style="shaded")
    identity, mask = graph.things[0].identity, draw([graph]).subjects[0, 0].numpy()
    text = f"a {identity.main} {identity.kind} with a {identity.accent} part"
    assert right_ones(graph, [mask], [(mask, text)] * 2) == 1
    assert right_ones(graph, [mask], [(~mask, text)]) == 0
    assert right_ones(graph, [mask], [(mask, text.replace(identity.kind, "thing"))]) == 0
    assert right_ones(graph, [mask], [(mask, f"a {identity.accent} and {identity.main} {identity.kind}")]) == 0


def opened(record: Any, ending: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record[ending])))


# --- shards ---

records = st.lists(st.fixed_dictionaries(dict.fromkeys(PARTS, st.text(max_size=600).map(str.encode))), max_size=4)


@few
@given(records)
def test_shards_hold_what_was_put_in(tmp_path_factory: pytest.TempPathFactory, some: list[dict[str, bytes]]) -> None:
    pytest.importorskip("pyarrow")
    keys = [f"{number:08d}-00" for number in range(len(some))]
    data = b"".join(map(tar_bytes, keys, some)) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} <= {(0, 0, "")}
    path = tmp_path_factory.mktemp("shards") / "shard"
    path.write_bytes(data)
    assert list(read_tar(path)) == list(zip(keys, some, strict=True))
    assert list(TarPlaces(path)) == list(zip(keys, some, strict=True))
    path.write_bytes(parquet_bytes(zip(keys, some, strict=True)))
    assert list(read_parquet(path)) == list(zip(keys, some, strict=True))
    assert list(ParquetPlaces(path)) == list(zip(keys, some, strict=True))


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_collection_reads_back_as_pictures_and_words(world: Path, whole: Path, tmp_path: Path, form: Any) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
        collect_quadruplets(world, tmp_path / "out", form="parquet", per_shard=4)
    data = Quadruplets(tmp_path / "out" if form == "parquet" else whole)
    ones = list(data)
    assert len(ones) == len(data) == data.manifest["counts"]["quadruplets"]
    assert {one["source"].size for one in ones} == {one["mask"].size for one in ones} == {(128, 128)}
    assert all(one["about"]["tag"] and one["text"].startswith(("a ", "an ")) for one in ones)
    for number in (*range(len(ones)), -1):
        for part in ("key", "source", "mask", "subject", "text", "about"):
            assert data[number][part] == ones[number][part]


def test_workers_of_a_data_loader_share_the_shards(whole: Path) -> None:
    from torch.utils.data import DataLoader

    loader = DataLoader(Quadruplets(whole), batch_size=None, num_workers=2, collate_fn=lambda one: one["key"])
    assert sorted(loader) == sorted(one["key"] for one in Quadruplets(whole))


def test_any_row_of_parquet_is_read_with_few_beside_it(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    one = dict.fromkeys(PARTS, b"{}")
    (tmp_path / "many.parquet").write_bytes(parquet_bytes((f"{number}", one) for number in range(40)))
    assert parquet.ParquetFile(tmp_path / "many.parquet").metadata.num_row_groups == 3
    assert [key for key, _ in ParquetPlaces(tmp_path / "many.parquet")] == [f"{number}" for number in range(40)]


def test_a_lost_shard_gets_a_sentence(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text((whole / "manifest.json").read_text())
    with pytest.raises(CapriccioError, match="put it back, or collect anew"):
        Quadruplets(tmp_path)[0]


def test_a_folder_without_a_collection_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CapriccioError, match="holds no finished collection; run capriccio collect quadruplets"):
        Quadruplets(tmp_path)


# --- sources ---


def test_every_picture_is_accounted_for(world: Path, whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    reasons = {one["source"]: one["reason"] for one in manifest["quarantine"]}
    assert "is damaged or cut short" in reasons["cut.png"]
    assert "is not one" in reasons["words.jpg"]
    assert "1 x 1 pixels; give one of 32 x 32 or more" in reasons["one.png"]
    assert "has 2 frames" in reasons["film.gif"]
    assert reasons["lost.png"] == "The picture 'lost.png' does not exist; give the path of a picture."
    assert [json.loads(line) for line in (whole / "quarantine.jsonl").read_text().splitlines()] == manifest[
        "quarantine"
    ]
    copies = [(one["source"], one["copy_of"]) for one in manifest["copies"]]
    assert copies == [("copy.png", "0.png"), ("link.png", "2.png")]
    assert manifest["sources"]["linked_folders_not_followed"] == ["linked"]
    assert manifest["sources"]["other_files"] == 1
    assert sum(manifest["counts"]["pictures"].values()) == manifest["sources"]["pictures"] == 13


def test_a_picture_with_nothing_in_it_is_empty_not_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    unit = work(tmp_path, Settings(), "cpu", "white.png")
    assert unit.refused is None
    assert isinstance(unit.records, tuple)


def test_a_large_transparent_picture_is_made_smaller_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (400, 200), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert work(tmp_path, Settings(longest=100), "cpu", "clear.png").refused is None


@pytest.mark.parametrize(("make", "match"), [(False, "is not a folder"), (True, "holds no pictures")])
def test_a_source_without_pictures_gets_a_sentence(tmp_path: Path, make: bool, match: str) -> None:
    if make:
        (tmp_path / "source").mkdir()
    with pytest.raises(CapriccioError, match=match):
        list_pictures(tmp_path / "source")


# --- resuming ---


def units(count: int) -> list[Unit]:
    """Made-up results: some empty, some refused, some copies."""
    made = []
    for number in range(count):
        one = {part: f"{part} {number}".encode() * 40 for part in PARTS}
        refused = "bad" if number % 5 == 3 else None
        made.append(Unit(f"{number:03d}.png", f"{number % 7}", (one,) * (number % 3), {"unsure": number % 2}, refused))
    return made


def plain(count: int, per_shard: int) -> tuple[Listing, dict[str, Any]]:
    listing = Listing(Path("source"), tuple(unit.source for unit in units(count)), 0, ())
    return listing, heading(listing, Settings(), "tar", per_shard)


class Stop(Exception):
    pass


@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=4),
)
def test_a_run_cut_anywhere_ends_like_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_shard: int, cuts: list[tuple[int, int]]
) -> None:
    listing, head = plain(count, per_shard)

    def go(out: Path) -> dict[str, Any]:
        state = Run.begin(out, head)
        for unit in units(count)[len(state.lines) :]:
            state.add(unit)
        return state.finish(listing, {})

    straight, broken = (tmp_path_factory.mktemp("run") for _ in range(2))
    go(straight)
    for writes, torn in cuts:
        with pytest.MonkeyPatch.context() as patch:
            cut_after(patch, writes, torn, broken)
            try:
                go(broken)
            except Stop:
                continue
    go(broken)
    assert contents(straight) == contents(broken)
    assert read_journal((broken / "journal.jsonl").read_bytes()).lines == tuple(Run.begin(straight, head).lines)


def cut_after(patch: pytest.MonkeyPatch, writes: int, torn: int, out: Path) -> None:
    """Stop at the moment of so many notes, with some bytes of a line that was never ended."""
    left, note = writes, Run._note

    def stopping(self: Run, entry: Any, sync: bool = False) -> None:
        nonlocal left
        if left == 0:
            with (out / "journal.jsonl").open("ab") as file:
                file.write(json.dumps(entry).encode()[:torn])
            raise Stop
        left -= 1
        note(self, entry, sync)

    patch.setattr(Run, "_note", stopping)


def test_bytes_lost_with_the_power_are_made_again(tmp_path: Path) -> None:
    listing, head = plain(6, 10)
    state = Run.begin(tmp_path, head)
    for unit in units(6)[:5]:
        state.add(unit)
    os.truncate(state.part, state.lines[2]["end"])
    again = Run.begin(tmp_path, head)
    assert len(again.lines) < 5
    for unit in units(6)[len(again.lines) :]:
        again.add(unit)
    assert again.finish(listing, {})["counts"] == finished(tmp_path / "straight", 6, 10)["counts"]


def finished(out: Path, count: int, per_shard: int) -> dict[str, Any]:
    out.mkdir()
    listing, head = plain(count, per_shard)
    state = Run.begin(out, head)
    for unit in units(count):
        state.add(unit)
    return state.finish(listing, {})


def test_a_folder_of_another_run_is_refused_by_what_differs(world: Path, whole: Path) -> None:
    with pytest.raises(CapriccioError, match=r"begun with another settings.per_shard \(4 before, 5 now\)"):
        collect_quadruplets(world, whole, per_shard=5)


def test_a_finished_folder_is_left_as_it_is(world: Path, whole: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.glob("quadruplets-*")}
    assert collect_quadruplets(world, whole, per_shard=4) == json.loads((whole / "manifest.json").read_text())
    assert {path.name: path.stat().st_mtime_ns for path in whole.glob("quadruplets-*")} == before


def test_a_shard_that_went_missing_gets_a_sentence(tmp_path: Path) -> None:
    finished(tmp_path / "out", 6, 2)
    (tmp_path / "out" / "quadruplets-00001.tar").unlink()
    with pytest.raises(CapriccioError, match=r"finished shard .*00001\.tar.* is missing or changed; put it"):
        Run.begin(tmp_path / "out", plain(6, 2)[1])


def test_a_damaged_journal_gets_a_sentence() -> None:
    with pytest.raises(CapriccioError, match="journal of this folder is damaged"):
        read_journal(b'{"run": {}}\nnonsense\n{"unit": {}}\n')


def test_a_killed_command_goes_on_and_ends_alike(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "capriccio.cli",
        "collect",
        "quadruplets",
        str(world),
        str(out),
        "--per-shard",
        "4",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "journal.jsonl").exists() and (out / "journal.jsonl").read_bytes().count(b"\n") >= 4:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists()
    done = len(read_journal((out / "journal.jsonl").read_bytes()).lines)
    steps: list[int] = []
    collect_quadruplets(world, out, per_shard=4, told=lambda count, total: steps.append(count))
    assert steps[0] == done > 0  # a lock of a dead process is no hindrance, and nothing is done again
    assert contents(out) == contents(whole)


# --- the lock ---


def test_a_folder_that_is_being_written_is_refused(world: Path, tmp_path: Path) -> None:
    with locked(tmp_path):
        result = run("collect", "quadruplets", world, tmp_path)
    assert result.exit_code == 2
    assert f"Another run is writing to '{tmp_path}' (process {os.getpid()} on" in result.output


def test_a_lock_file_of_a_process_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 999999999 on elsewhere, with a long name\n")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    with (tmp_path / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_cannot_be_written_gets_a_sentence(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CapriccioError, match=r"cannot be written .*; choose another folder"):
        collect_quadruplets(world, tmp_path / "file" / "out")


def test_a_full_disk_gets_a_sentence(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Run, unit: Unit) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.Run, "add", full)
    with pytest.raises(CapriccioError, match=r"No space left on device.*what is finished is kept"):
        collect_quadruplets(world, tmp_path)


# --- engines ---


def test_several_processes_make_what_one_makes(world: Path, whole: Path, tmp_path: Path) -> None:
    collect_quadruplets(world, tmp_path / "out", per_shard=4, by=engine(workers=2))
    assert contents(tmp_path / "out") == contents(whole)


def test_an_engine_without_ray_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from capriccio.collect.engines import _ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapriccioError, match=r"pip install 'capriccio\[ray\]', or leave out --engine ray"):
        _ray(1, None)


def test_what_a_lost_cluster_is_told_as() -> None:
    assert str(_lost(3, 9, "LocalRayletDiedError")) == (
        "The Ray cluster went away after 3 of 9 pictures (LocalRayletDiedError); what is finished is kept: "
        "start the cluster again, or leave out --engine ray, and run the same command."
    )


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--stages", "wrold"), "There are no stages 'wrold'; did you mean 'world'?"),
        (("--engine", "rey"), "There is no engine 'rey'; did you mean 'ray'?"),
        (("--format", "parket"), "There are no 'parket' shards; did you mean 'parquet'?"),
        (("--tagger", "x"), "The tagger 'x' is for photographs; add --stages transformers."),
        (("--workers", "0"), "The engine received 0 workers; give 1 or more."),
        (("--per-shard", "0"), "per_shard received 0; give 1 or more."),
        (("--ray-address", "auto"), "The address 'auto' is for Ray; add --engine ray."),
        (("--longest", "8"), "longest received 8; give 32 pixels or more."),
    ],
)
def test_mistakes_at_the_command_line_are_one_sentence(
    world: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = run("collect", "quadruplets", world, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert result.output.strip() == sentence
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_made(world: Path, whole: Path) -> None:
    result = run("collect", "quadruplets", world, whole, "--per-shard", 4)
    assert result.exit_code == 0
    assert f"shards in {whole}" in result.output
    assert "2 copy, 5 refused" in result.output
    assert "folders behind links, not followed: linked" in result.output
    assert (
        json.loads(run("collect", "quadruplets", world, whole, "--per-shard", 4, "--json").output)["schema_version"]
        == 1
    )


def test_a_stage_that_is_none_gets_the_nearest_name() -> None:
    assert cast() == Cast()
    assert dict(cast("transformers", captioner="mine").models)["captioner"] == "mine"
    with pytest.raises(CapriccioError, match="no stage 'taggers'; did you mean 'tagger'"):
        cast("transformers", taggers="x")


# --- Ray ---


@pytest.mark.slow
def test_ray_makes_what_one_process_makes(world: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    collect_quadruplets(world, tmp_path / "out", per_shard=4, by=engine("ray"))
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.slow
def test_a_cluster_that_goes_away_is_a_sentence_and_what_is_done_is_kept(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    import psutil

    def kill_cluster(done: int, total: int) -> None:
        if done == 5:
            servers = [
                one for one in psutil.Process().children(recursive=True) if one.name() in ("raylet", "gcs_server")
            ]
            assert servers
            for server in servers:
                server.kill()

    out = tmp_path / "out"
    with pytest.raises(CapriccioError, match=r"The Ray cluster went away after \d+ of 13 .*what is finished is kept"):
        collect_quadruplets(world, out, per_shard=4, by=engine("ray"), told=kill_cluster)
    assert (out / "quadruplets-00000.tar").exists()
    collect_quadruplets(world, out, per_shard=4)
    assert contents(out) == contents(whole)
