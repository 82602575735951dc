"""Are quadruplets right, how fast are they made, and does a killed run end like one that was not?

    python benchmarks/collect.py --json                                     one row a line
    python benchmarks/collect.py --save benchmarks/results/collect.json     and a file with its recipe
    python benchmarks/collect.py --quick                                    16 pictures and two kills
    python benchmarks/collect.py --sheet docs/pictures/quadruplets.jpg      only some quadruplets to look at

Pictures of held-out scenes of the world are collected with the world's stages, which see their pixels alone.

``{name: "quadruplets", subjects, precision, recall, per_core_second, pictures}``: a quadruplet is right if its mask
overlaps the visible pixels of a thing by 0.7 or more (intersection over union), and its text names the kind of that
thing and its main colour (no colour in pencil and blueprint, which show none); each thing counts once.
``per_core_second`` is quadruplets for each second of processor time of the one process, reading and writing included,
loading the reader not.
``{name: "kill", kills, equal}``: the command, sent SIGKILL at random moments of its work and started again each time;
``equal`` says that all its shards, the quarantine and the manifest but for its timings are those of the run before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from capriccio.collect import Quadruplets, Settings, collect_quadruplets
from capriccio.collect.sources import work
from capriccio.evaluation import reports
from capriccio.evaluation.quadruplets import rates
from capriccio.perception.segment import Mask
from capriccio.pictures import grid, save_png
from capriccio.world.draw import draw
from capriccio.world.graph import SceneGraph, sample_scene

PER_SHARD = 16
SIDE, GAP = 128, 4


def paint(folder: Path, count: int, subjects: int, seed: int) -> list[tuple[SceneGraph, list[Mask]]]:
    """Save pictures of held-out scenes by number, and return their graphs and true masks."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, subjects])
    graphs = [sample_scene(rng, subjects=subjects, split="test") for _ in range(count)]
    truths = []
    for number, graph in enumerate(graphs):
        drawing = draw([graph])
        array = ((drawing.pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{number:05d}.png")
        truths.append((graph, list(drawing.subjects[0].numpy())))
    return truths


def judge(folder: Path, truths: list[tuple[SceneGraph, list[Mask]]]) -> Any:
    """Return the rates of a finished collection."""
    finds: list[list[tuple[Mask, str]]] = [[] for _ in truths]
    for one in Quadruplets(folder):
        finds[int(Path(one["about"]["source"]).stem)].append((np.asarray(one["mask"]) > 0, one["text"]))
    return rates((graph, masks, found) for (graph, masks), found in zip(truths, finds, strict=True))


def measure(count: int, pairs: int, kills: int, seed: int, room: Path) -> Iterator[dict[str, Any]]:
    """Measure scenes of one thing, of two, and killed runs of the first."""
    seconds = 0.0
    for subjects, pictures in ((1, count), (2, pairs)):
        source, out = room / f"source-{subjects}", room / f"out-{subjects}"
        truths = paint(source, pictures, subjects, seed)
        work(source, Settings(), "cpu", "00000.png")  # the reader is loaded
        began, clock = time.process_time(), time.monotonic()
        collect_quadruplets(source, out, per_shard=PER_SHARD, told=_told(f"{subjects} a picture"))
        spent = time.process_time() - began
        seconds = seconds or time.monotonic() - clock
        found = judge(out, truths)
        yield {
            "name": "quadruplets",
            "subjects": subjects,
            "precision": found.precision,
            "recall": found.recall,
            "per_core_second": found.found / spent,
            "pictures": pictures,
        }
    yield kill(room / "source-1", room / "out-1", room / "killed", kills, seconds, seed)


def sheet(path: Path, seed: int, room: Path) -> None:
    """Save some quadruplets, of scenes of one thing and of two: source, mask, subject, and the text below."""
    strips, texts = [], []
    for subjects, pictures in ((1, 6), (2, 3)):
        paint(room / f"source-{subjects}", pictures, subjects, seed)
        collect_quadruplets(room / f"source-{subjects}", room / f"out-{subjects}")
        for one in Quadruplets(room / f"out-{subjects}"):
            strip = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE), "white")
            for place, name in enumerate(("source", "mask", "subject")):
                strip.paste(
                    one[name].convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * (SIDE + GAP), 0)
                )
            # A thin line round a subject, which is white on white.
            ImageDraw.Draw(strip).rectangle((2 * (SIDE + GAP), 0, strip.width - 1, SIDE - 1), outline="#cccccc")
            strips.append(strip)
            texts.append(one["text"])
    save_png(grid(strips, 3, texts, gap=18, text_size=15), path)


def kill(source: Path, whole: Path, out: Path, kills: int, seconds: float, seed: int) -> dict[str, Any]:
    """Kill the command that many times at random moments, let it end, and compare."""
    rng = np.random.default_rng([seed, 9])
    command = [sys.executable, "-m", "capriccio.cli", "collect", "quadruplets", str(source), str(out), "--json"]
    command += ["--per-shard", str(PER_SHARD)]
    done = 0
    while done < kills:
        if killed(command, out / "journal.jsonl", rng.uniform(0, 1.6 * seconds / (kills + 1))):
            done += 1
            reports.note(f"killed {done} times, {_lines(out / 'journal.jsonl')} lines in the journal")
        elif (out / "manifest.json").exists():
            break  # it was done before it could be killed as often
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"name": "kill", "kills": done, "equal": contents(out) == contents(whole)}


def killed(command: list[str], journal: Path, wait: float) -> bool:
    """Start a command, and kill it that many seconds after its journal grew; false if it had ended."""
    before = _lines(journal)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and _lines(journal) == before:
            time.sleep(0.01)
        time.sleep(wait)
        alive = process.poll() is None
        process.kill()
    return alive


def contents(out: Path) -> dict[str, Any]:
    """Return what a collection is: its shards and its quarantine as bytes, its manifest without timings."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".tar", ".parquet")}
    manifest = json.loads((out / "manifest.json").read_text())
    manifest.pop("timings")
    return {**files, "quarantine": (out / "quarantine.jsonl").read_bytes(), "manifest": manifest}


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _told(name: str) -> Any:
    return lambda done, total: reports.note(f"{name}: {done} of {total}") if done % 25 == 0 else None


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="16 pictures of each and two kills")
    parser.add_argument("--pictures", type=int, default=200, help="pictures of one thing")
    parser.add_argument("--pairs", type=int, default=100, help="pictures of two")
    parser.add_argument("--kills", type=int, default=10, help="how often the command is killed")
    parser.add_argument("--seed", type=int, default=17, help="of the scenes and the moments")
    parser.add_argument("--note", default="", help="what to remember of the machine, as that it was busy")
    parser.add_argument("--sheet", metavar="FILE", help="only save some quadruplets as a picture")
    arguments = parser.parse_args()
    sizes = (16, 16, 2) if arguments.quick else (arguments.pictures, arguments.pairs, arguments.kills)
    with tempfile.TemporaryDirectory() as room:
        if arguments.sheet:
            sheet(Path(arguments.sheet), arguments.seed, Path(room))
            return
        rows = list(measure(*sizes, arguments.seed, Path(room)))
    reports.show(rows, "Quadruplets of the world", arguments.json)
    if arguments.save:
        protocol = dict(zip(("pictures", "pairs", "kills"), sizes, strict=True)) | {"seed": arguments.seed}
        protocol |= {"note": arguments.note} if arguments.note else {}
        reports.save(arguments.save, rows, reports.recipe(**protocol))


if __name__ == "__main__":
    main()
