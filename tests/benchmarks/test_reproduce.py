"""The table of results: its rows come from what the studies saved, its page is what the rows say."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
Load = Callable[[str], ModuleType]


@pytest.fixture
def parts(load: Load) -> dict[str, ModuleType]:
    names = ("published", "readers", "claims", "studies", "rows", "page", "smoke")
    return {name: load(f"_reproduce_{name}") for name in names}


@pytest.fixture
def study(
    load: Load, parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., int]:
    """``main`` of the script, which writes into a folder of the test."""
    module = load("reproduce")
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(module.harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    # drawn once, by a test of its own
    monkeypatch.setattr(module, "draw", lambda rows, file: None)
    shutil.copy(RESULTS / "online_abstention.json", tmp_path / "results")
    return module.main


@pytest.fixture
def committed(parts: dict[str, ModuleType]) -> tuple[list[Any], dict[str, str]]:
    found: tuple[list[Any], dict[str, str]] = parts["rows"].rows_of(parts["claims"].claims("cpu"), RESULTS, {})
    return found


def test_every_row_comes_from_a_study_that_is_there_and_is_finite(committed: tuple[list[Any], dict[str, str]]) -> None:
    rows, lost = committed
    assert lost == {}
    assert len({row.claim.key for row in rows}) == len(rows) > 90
    assert all(math.isfinite(row.gain) and math.isfinite(row.spread) for row in rows)
    assert {row.count for row in rows if row.pairs.over == "seeds"} <= {3, 4, 5, 6}


def test_the_page_is_what_the_saved_results_render_to(
    parts: dict[str, ModuleType], committed: tuple[list[Any], dict[str, str]]
) -> None:
    gpu, _ = parts["rows"].rows_of(parts["claims"].claims("gpu"), RESULTS, {})
    assert parts["page"].page(*committed, 5, gpu) == PAGE.read_text(encoding="utf-8")


def test_the_saved_rows_are_those_of_the_studies(committed: tuple[list[Any], dict[str, str]]) -> None:
    saved = json.loads((RESULTS / "reproduce_cpu.json").read_text())
    assert saved["lost"] == {}
    assert saved["rows"] == json.loads(json.dumps([row.told() for row in committed[0]]))


def test_a_difference_is_taken_seed_by_seed(committed: tuple[list[Any], dict[str, str]]) -> None:
    [row] = [row for row in committed[0] if row.claim.key.startswith("disk: DiSK over KD, generated modes, 8 hidden")]
    runs = json.loads((RESULTS / "disk_toy.json").read_text())["runs"]["8"].values()
    methods = [run["methods"] for run in runs]
    gains = [100 * (one["DiSK"]["test_accuracy"] - one["KD"]["test_accuracy"]) for one in methods]
    assert row.differences == pytest.approx(gains)
    assert row.gap == pytest.approx(sum(gains) / 5 - (58.14 - 54.92))


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_every_method_has_a_name_and_every_figure_a_source(parts: dict[str, ModuleType], profile: str) -> None:
    claims = parts["claims"].claims(profile)
    assert {claim.published.source for claim in claims if claim.published} <= parts["published"].SOURCES.keys()
    assert {claim.method for claim in claims if claim.published} <= parts["published"].WHY.keys()
    assert profile == "gpu" or {claim.method for claim in claims} == parts["claims"].METHODS.keys()
    for name in {claim.study for claim in claims}:
        script = parts["studies"].reproduces(name, 5).partition("python ")[2].split()[0]
        assert (ROOT / script).is_file()


def test_every_study_of_the_smoke_profile_has_a_toy(parts: dict[str, ModuleType]) -> None:
    assert {claim.study for claim in parts["claims"].claims("smoke")} == parts["smoke"].TOYS.keys()


def test_seeds_that_only_one_of_the_two_has_are_left_out(parts: dict[str, ModuleType]) -> None:
    record = {"runs": {"a": {"10": {"x": 0.5}, "9": {"x": 0.25}, "1": {}}, "b": {"9": {"x": 0.1}, "10": {"x": 0.2}}}}
    read = parts["readers"].paired(("runs", "a", "*", "x"), ("runs", "b", "*", "x"))
    assert read(record) == ([25.0, 50.0], [10.0, 20.0], "seeds")


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_number_that_is_not_finite_is_refused(parts: dict[str, ModuleType], value: float) -> None:
    record = {"runs": {"a": {"0": value}, "b": {"0": 1.0}}}
    with pytest.raises(ValueError, match="not every value is finite"):
        parts["readers"].paired(("runs", "a", "*"), ("runs", "b", "*"))(record)


def test_a_problem_that_was_never_solved_took_all_batches(parts: dict[str, ModuleType]) -> None:
    runs = {name: {"0": {"first_below": {"0.05": step}}} for name, step in (("fast", 40), ("never", None))}
    record = {"most_batches": {"20": 300, "100": 500}, "runs": {"100": {}, "20": runs}}
    assert parts["readers"].adding_speed("fast", "never")(record) == ([40.0], [300.0], "seeds")


def row_of(parts: Mapping[str, ModuleType], better: str, ours: float, published: float) -> Any:
    figure = parts["published"].Published(published, "data", "OSP")
    claim = parts["claims"].Claim("osp", "a", "b", "task", "study", lambda _: None, "error, %", better, figure)
    return parts["rows"].Row(claim, parts["readers"].Pairs([1 + ours], [1.0]), {}, ())


@pytest.mark.parametrize(
    ("better", "ours", "published", "gap"),
    [("higher", 2.0, 3.0, -1.0), ("higher", 3.0, 2.0, 1.0), ("lower", -2.0, -3.0, -1.0), ("lower", -3.0, -2.0, 1.0)],
)
def test_a_gap_below_zero_is_a_gain_that_is_not_reached(
    parts: dict[str, ModuleType], better: str, ours: float, published: float, gap: float
) -> None:
    row = row_of(parts, better, ours, published)
    assert row.gap == pytest.approx(gap)
    assert row.reached == (gap >= 0)
    told = parts["page"]._below([row])
    assert ("below the published gain in 1 of 1 rows" in told) == (gap < 0)


def test_the_picture_is_small(
    parts: dict[str, ModuleType], committed: tuple[list[Any], dict[str, str]], tmp_path: Path
) -> None:
    parts["page"].draw(committed[0], tmp_path / "results.png")
    assert 10_000 < (tmp_path / "results.png").stat().st_size < 150_000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--profile", "tpu"], "error: --profile tpu is unknown; use one of smoke, cpu, gpu"),
        (["--profile", "cpu", "--only", "dsk"], "error: --only dsk is unknown; use some of fptt, chunked,"),
        (["--profile", "gpu", "--only", "fptt"], "error: --only fptt has no row in --profile gpu;"),
        (["--profile", "cpu", "--output", "x"], "error: --output x is for --profile smoke only;"),
        (["--profile", "gpu"], "error: --profile gpu needs a CUDA device, and there is none;"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_status_2(
    study: Callable[..., int],
    words: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert study(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_what_is_on_disk_is_kept(
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("reproduce.run", lambda *_: pytest.fail("it was run"))
    assert study(["--profile", "cpu", "--only", "online"]) == 0
    assert "[1/1] online_abstention: on disk" in capsys.readouterr().out
    saved = json.loads((tmp_path / "results" / "reproduce_cpu.json").read_text())
    assert [row["method"] for row in saved["rows"]] == ["online", "online"]
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "mistakes, streams of digits" in page
    assert "fptt_memory was not run" in page


@pytest.mark.parametrize("change", ["again", "damaged"])
def test_a_study_runs_when_asked_or_when_the_saved_one_is_another(
    study: Callable[..., int], change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "results" / "online_abstention.json"
    if change == "damaged":
        file.write_text(file.read_text()[:-20])
    asked = []
    monkeypatch.setattr("reproduce.run", lambda *arguments: asked.append(arguments) or "")
    study(["--profile", "cpu", "--only", "online", *(["--again"] if change == "again" else [])])
    assert asked == [("online_abstention", 5, change == "again")]


def test_a_study_that_fails_costs_its_rows_and_not_the_table(
    study: Callable[..., int],
    parts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    missing = parts["studies"].Study(("no_such_study",), seeded=False)
    monkeypatch.setattr(parts["studies"], "STUDIES", {**parts["studies"].STUDIES, "selective_thresholds": missing})
    monkeypatch.setattr("reproduce.STUDIES", parts["studies"].STUDIES)
    shutil.copy(RESULTS / "routing_thresholds.json", tmp_path / "results")
    assert study(["--profile", "cpu", "--only", "thresholds", "online"]) == 1
    told = capsys.readouterr()
    assert "selective_thresholds: FAILED: exit status 2" in told.out
    assert told.err.count("no row for thresholds") == told.err.count("no row for") == 2
    assert "betting over empirical threshold" in (tmp_path / "results" / "reproduce_cpu.json").read_text()


def test_ctrl_c_keeps_what_was_finished(
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("reproduce.run", stop)
    assert study(["--profile", "cpu", "--only", "thresholds", "online"]) == 130
    saved = json.loads((tmp_path / "results" / "reproduce_cpu.json").read_text())
    assert [row["method"] for row in saved["rows"]] == ["online", "online"]


def test_data_that_are_not_there_are_named(
    parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = parts["studies"].STUDIES["disk_images_cifar10_6k"]
    monkeypatch.delenv("LIGHTNING_EFFICIENT_DATA", raising=False)
    assert images.missing() == "LIGHTNING_EFFICIENT_DATA names no folder with cifar-10-batches-py"
    monkeypatch.setenv("LIGHTNING_EFFICIENT_DATA", str(tmp_path))
    (tmp_path / "CIFAR10" / "cifar-10-batches-py").mkdir(parents=True)
    assert images.missing() == ""


def test_smoke_names_the_study_that_fails_and_reads_the_one_that_does_not(
    study: Callable[..., int],
    load: Load,
    parts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def broken(seeds: int) -> None:
        raise RuntimeError("no\nluck")

    online = load("online_abstention")
    monkeypatch.setattr(online, "CLASSIFIERS", 2)
    load("selective_thresholds")
    load("routing_thresholds")
    toys = dict.fromkeys(("selective_thresholds", "routing_thresholds"), broken)
    monkeypatch.setattr(parts["smoke"], "TOYS", {"online_abstention": parts["smoke"].online, **toys})
    monkeypatch.setattr("reproduce.TOYS", parts["smoke"].TOYS)
    monkeypatch.setattr("reproduce.ProcessPoolExecutor", parts["smoke"].InProcess)
    monkeypatch.setattr("harness.RESULTS", tmp_path / "out")
    assert study(["--profile", "smoke", "--only", "thresholds", "online", "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "selective_thresholds: FAILED: RuntimeError: no\n" in told.out
    assert told.err.count("no row for thresholds") == 3
    saved = json.loads((tmp_path / "out" / "reproduce_smoke.json").read_text())
    assert [len(row["pairs"]["method"]) for row in saved["rows"]] == [6, 6]
    assert (tmp_path / "out" / "results.md").read_text().startswith("Toy sizes; no results.")


@pytest.fixture
def harness(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load("harness")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_record_is_gone_on_from_where_its_settings_are_the_same(
    harness: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness.resumed("toy", {"epochs": 3}) == {}
    harness.save("toy", {"epochs": 3, "widths": (1, 2), "runs": {"0": 0.5}})
    first = json.loads((harness.RESULTS / "toy.json").read_text())
    found = harness.resumed("toy", {"epochs": 3, "widths": (1, 2)})
    assert found["runs"] == {"0": 0.5}
    harness.save("toy", found)
    again = harness.resumed("toy", {"epochs": 3})
    assert again["earlier"][0]["environment"] == first["environment"]
    assert len(again["earlier"]) == 2
    assert harness.resumed("toy", {"epochs": 4}) == {}
    assert "toy.json is of other settings" in capsys.readouterr().out


def test_a_study_of_sequences_adds_the_seeds_that_are_missing(
    harness: ModuleType, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load("fptt_tasks")
    asked: list[tuple[str, str, int]] = []
    found = {"test_accuracy": 0.5, "parameters": 1, "cpu_seconds": 1.0}
    monkeypatch.setattr(study, "run", lambda task, *which: asked.append(which) or found)
    words = ["fptt_tasks", "digits", "--networks", "lstm", "--methods", "BPTT", "FPTT", "--seeds"]
    for more in (["1"], ["2", "--resume"], ["2", "--resume"]):
        monkeypatch.setattr("sys.argv", [*words, *more])
        study.main()
    assert asked == [("lstm", method, seed) for seed in (0, 1) for method in ("BPTT", "FPTT")]
    runs = json.loads((harness.RESULTS / "fptt_tasks_digits.json").read_text())["runs"]["lstm"]
    assert [list(seeds) for seeds in runs.values()] == [["0", "1"], ["0", "1"]]


def test_a_study_of_blocks_adds_seeds_with_the_rates_that_were_chosen(
    harness: ModuleType, load: Load, parts: Mapping[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    load("images")
    load("_blocks_variants")
    study = load("blocks_images")
    task = study.TASKS["digits"]
    monkeypatch.setattr(study, "RESULTS", harness.RESULTS)
    monkeypatch.setattr(study, "ProcessPoolExecutor", parts["smoke"].InProcess)
    monkeypatch.setattr(study, "report", lambda *_: None)
    asked = []
    monkeypatch.setattr(study, "train", lambda *which: asked.append(which[1:5]) or {"accuracy": 0.75})
    run = {"accuracy": 0.5, "rate": {"lr": 0.4}}
    harness.save("blocks_images_digits", {"task": vars(task), "device": "cpu", "runs": {"base": {"0": run}}})
    record = study.go_on("digits", 3, "cpu", 1)
    assert asked == [("base", task.widths, {"lr": 0.4}, seed) for seed in (1, 2)]
    assert [each["accuracy"] for each in record["runs"]["base"].values()] == [0.5, 0.75, 0.75]


def test_a_study_of_compression_adds_seeds_and_times_what_it_has_timed_no_more(
    harness: ModuleType, load: Load, parts: Mapping[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images", "_compression_variants"):
        load(name)
    study = load("compression")
    monkeypatch.setattr(study, "ProcessPoolExecutor", parts["smoke"].InProcess)
    monkeypatch.setattr(study, "report", lambda *_: None)
    timed: list[list[str]] = []
    monkeypatch.setattr(study, "time_networks", lambda name, record, task, kept: timed.append(list(kept)))

    def run(task: Any, network: str, seed: int, keep: str | None) -> dict[str, Any]:
        if keep is not None:
            (Path(keep) / "network").touch()
        return {"seed": seed}

    monkeypatch.setattr(study, "run", run)
    study.study("digits", ["resnet10t"], 1, 1)
    record = study.study("digits", ["resnet10t"], 3, 1, resume=True)
    assert record["runs"] == {"resnet10t": {str(seed): {"seed": seed} for seed in range(3)}}
    assert timed == [["resnet10t"], []]
