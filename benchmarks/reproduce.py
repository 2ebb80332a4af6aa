"""The table of results: every method against its baseline, ours beside the published figure.

``smoke``: every row at toy size, three seeds, two processes, under two minutes; it checks that each row comes out as
finite numbers and that the page can be written, into ``--output``. Its numbers mean nothing. ``cpu``: five seeds on
digits and generated tasks, and on 2,000 to 10,000 images where ``LIGHTNING_EFFICIENT_DATA`` names a folder with them.
``gpu``: all of FashionMNIST and CIFAR-10 with ``--device cuda``.

What is on disk with enough seeds is kept, whatever version it is of, which the page says; ``--again`` runs it anew.
Studies that can go on from the seeds that they have do so. A study that fails costs its rows, which are named, and the
exit status is 1 then; 2 is a wrong option. Ctrl-C keeps what was finished. ``cpu`` and ``gpu`` write
``results/reproduce_<profile>.json``, ``docs/results.md`` and ``docs/images/results.png``; ``--render-only`` runs
nothing and writes these from what is on disk.

Run: ``LIGHTNING_EFFICIENT_DATA=FOLDER python benchmarks/reproduce.py --profile cpu [--only disk gain]``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import harness
from _reproduce_claims import METHODS, Claim, claims
from _reproduce_page import cells, draw, page
from _reproduce_rows import Row, rows_of
from _reproduce_smoke import TOYS, prepare, toy
from _reproduce_studies import STUDIES, is_done, run, seeds_of

PROFILES = ("smoke", "cpu", "gpu")
SEEDS = {"smoke": 3, "cpu": 5, "gpu": 5}
DOCS = Path(__file__).resolve().parents[1] / "docs"
PROCESSES = 2


class WrongOptionError(Exception):
    """An option that cannot be used, in one line."""


def study_all(wanted: Sequence[Claim], profile: str, again: bool, failed: dict[str, str]) -> None:
    """Run what is not on disk; note by study how it failed."""
    seeds, folder = SEEDS[profile], harness.RESULTS
    names = list(dict.fromkeys(claim.study for claim in wanted))
    for number, name in enumerate(names, start=1):
        before = f"[{number}/{len(names)}] {name}: "
        if not again and is_done(name, wanted, folder, seeds):
            print(f"{before}on disk", flush=True)
            continue
        if reason := STUDIES[name].missing():
            print(f"{before}not run: {reason}", flush=True)
            continue
        print(f"{before}running, {seeds_of(name, wanted, folder)} of {seeds} seeds are there", flush=True)
        start = perf_counter()
        if reason := run(name, seeds, again):
            failed[name] = reason
            print(f"{before}FAILED: {reason}", flush=True)
        else:
            print(f"{before}done in {perf_counter() - start:.0f} s", flush=True)


def smoke_all(wanted: Sequence[Claim], folder: Path, failed: dict[str, str]) -> None:
    """Run every study at toy size, two at a time; note by study how it failed."""
    names = {claim.study for claim in wanted}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=prepare, initargs=(folder,)) as pool:
        pending: dict[Future[float], str] = {
            pool.submit(toy, name, SEEDS["smoke"], folder): name for name in TOYS if name in names
        }
        try:
            for number, future in enumerate(as_completed(pending), start=1):
                name = pending[future]
                try:
                    print(f"[{number}/{len(pending)}] {name}: {future.result():.0f} s", flush=True)
                except Exception as error:  # whatever a study raises costs its rows only
                    failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                    print(f"[{number}/{len(pending)}] {name}: FAILED: {failed[name]}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def render(wanted: Sequence[Claim], profile: str, failed: dict[str, str], folder: Path) -> dict[str, str]:
    """Write the JSON, the page and the picture, and print the rows; return the claims of these without a row."""
    # file and page have all methods, whatever was asked for now
    rows, lost = rows_of(wanted if profile == "smoke" else claims(profile), folder, failed)
    record = {"profile": profile, "seeds": SEEDS[profile], "rows": [row.told() for row in rows], "lost": lost}
    (folder / f"reproduce_{profile}.json").write_text(json.dumps(record, indent=1) + "\n")
    if profile == "smoke":
        (folder / "images").mkdir(exist_ok=True)
        (folder / "results.md").write_text("Toy sizes; no results.\n\n" + page(rows, lost, SEEDS[profile]))
        draw(rows, folder / "images" / "results.png")
    else:
        cpu, missing = rows_of(claims("cpu"), folder, failed)
        gpu, _ = rows_of(claims("gpu"), folder, failed)
        (DOCS / "results.md").write_text(page(cpu, missing, SEEDS["cpu"], gpu))
        draw(cpu, DOCS / "images" / "results.png")
    asked = {claim.key for claim in wanted}
    show([row for row in rows if row.claim.key in asked], profile)
    return {key: reason for key, reason in lost.items() if key in asked}


def show(rows: Sequence[Row], profile: str) -> None:
    lines = []
    for row in rows:
        variant, baseline, task, _, _, _, difference, count, _, gap, _ = cells(row)
        lines.append([f"{variant} over {baseline}, {task}", difference, count, gap.strip("*")])
    columns = ["method over baseline, task", "difference", "n", "gap to published"]
    harness.table(f"{profile}: {len(rows)} rows", columns, lines)


@contextmanager
def cuda_if(profile: str) -> Iterator[None]:
    if profile == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise WrongOptionError("--profile gpu needs a CUDA device, and there is none; use smoke or cpu")
    yield


def chosen(profile: str, only: Sequence[str]) -> list[Claim]:
    """Return the rows of a profile, or of some methods of it."""
    if profile not in PROFILES:
        raise WrongOptionError(f"--profile {profile} is unknown; use one of {', '.join(PROFILES)}")
    for name in only:
        if name not in METHODS:
            raise WrongOptionError(f"--only {name} is unknown; use some of {', '.join(METHODS)}")
    found = [claim for claim in claims(profile) if not only or claim.method in only]
    if not found:
        raise WrongOptionError(
            f"--only {' '.join(only)} has no row in --profile {profile}; use other methods or profiles"
        )
    return found


def folder_of(profile: str, output: str | None) -> Path:
    if output is not None and profile != "smoke":
        raise WrongOptionError(
            f"--output {output} is for --profile smoke only; {profile} writes into benchmarks/results"
        )
    folder = harness.RESULTS if profile != "smoke" else Path(output or Path("runs") / "reproduce_smoke").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="smoke", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--again", action="store_true", help="run studies anew that are on disk")
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the page from what is on disk")
    parser.add_argument("--output", metavar="FOLDER", help="where smoke writes; runs/reproduce_smoke if left out")
    arguments = parser.parse_args(words)
    profile, stopped = arguments.profile, False
    failed: dict[str, str] = {}
    try:
        wanted = chosen(profile, arguments.only)
        folder = folder_of(profile, arguments.output)
        if not arguments.render_only:
            with cuda_if(profile):
                if profile == "smoke":
                    smoke_all(wanted, folder, failed)
                else:
                    study_all(wanted, profile, arguments.again, failed)
    except WrongOptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        stopped = True
    lost = render(wanted, profile, failed, folder)
    for key, reason in lost.items():
        print(f"no row for {key}: {reason}", file=sys.stderr)
    return 130 if stopped else 1 if failed or (profile == "smoke" and lost) else 0


if __name__ == "__main__":
    sys.exit(main())
