"""The page of a run: what is on it, that it is sound HTML by itself, and that a browser draws it."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import shutil
import struct
import subprocess
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting.report.charts import Axes, Series, line_chart
from lightning_efficient.reporting.report.page import render_report
from lightning_efficient.reporting.report.scales import scale_of, thinned
from lightning_efficient.reporting.report.trade_off import Among
from lightning_efficient.reporting.run_records import read_run

VOID = {"meta", "img"}
HOSTILE = "<script>alert(1)</script>\"'&\x00]]>"


class Page(HTMLParser):
    """A page taken apart; it fails where a tag is closed that is not the open one."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def png(width: int = 2, height: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\x00" + b"\xff\x00\x00" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


LATENCY = {"batch_size": 1, "p50_ms": 1.5, "p95_ms": 2.0, "throughput": 666.0, "threads": 1, "device": "cpu"}
PROFILE = {
    "name": "net",
    "parameters": 1500,
    "macs": 896_016,
    "bytes_on_disk": 2_424_919,
    "input_shape": [3, 32, 32],
    "latencies": [LATENCY],
    "layers": [{"name": "stem", "macs": 600_000, "output_shape": [8]}, {"name": "head", "macs": 296_016}],
}
PRUNING = {
    "sparsity": 0.9,
    "bytes": {"on_disk": 2_420_119},
    "layers": [{"layer": "stem", "weights": 432, "share": 0.25}],
    "history": [{"step": 2, "sparsity": 0.5}, {"step": 4, "sparsity": 0.9}],
}
QUANTIZATION = {
    "scheme": "aware",
    "quantized": ["stem", "head"],
    "size": {"float": {"bytes": 2_420_119, "compressed": 1000}, "int8": {"bytes": 1_155_565, "compressed": 500}},
    "latency": [{"name": "int8", "ms": 2.25, "speed_up": 1.5}],
}
ENERGY = {"joules": 12.5, "gaps": ["a counter failed"], "epochs": [{"epoch": 0, "train_joules": 9, "val_joules": 3.5}]}
CONFIG = {"seed_everything": 7, "trainer": {"max_epochs": 2}, "data": {"class_path": "a.b.Digits"}}
METRICS = """\
epoch,step,train/loss,val/loss,val/accuracy,test/accuracy,fptt/distance,guide/help_cost,guide/budget,profile/macs
0,1,2.5,,,,0.25,,,896016
0,2,,1.5,0.5,,,0.6,0.7,
1,3,nan,,,,0.125,,,
1,4,,inf,0.75,0.625,,0.5,0.7,
"""
CURVES = {
    "risk_coverage": "coverage,selective risk,threshold\n0.5,0.0,0.9\n1.0,0.25,0.1\n",
    "val_accuracy_coverage": "coverage,accuracy,threshold\n0.0,0.9,-inf\n1.0,0.8,0.5\n",
    "val_accuracy_macs": "macs,accuracy,threshold\n1000,0.8,0.1\n2000,0.9,0.2\n",
    "guide_histogram": "epoch,0,0.5\n0,30,10\n1,40,0\n",
    "notes": "what,ms\nfirst,1.25\n",
}


def make_run(folder: Path, **files: Any) -> Path:
    """Write a run with all that callbacks leave; the numbers are those of nothing real."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"0" * 1234)
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "picture.png").write_bytes(png())
    for stem, content in CURVES.items():
        (folder / f"{stem}.csv").write_text(content)
    reports = {"profile": PROFILE, "pruning": PRUNING, "quantization": QUANTIZATION, "energy": ENERGY, **files}
    for stem, content in reports.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    for name, macs, accuracy in (("cheap", 1000, 0.5), ("beaten", 9_000_000, 0.25)):
        (runs / name).mkdir()
        (runs / name / "profile.json").write_text(json.dumps({"macs": macs}))
        (runs / name / "metrics.csv").write_text(f"epoch,test/accuracy\n0,{accuracy}\n")
    return make_run(runs / "version_0")


@pytest.fixture(scope="module")
def markup(folder: Path) -> str:
    return render_report(folder, folder / "report.html")


@pytest.fixture(scope="module")
def page(markup: str) -> Page:
    return Page(markup)


SECTIONS = {
    "results": "Results",
    "trade-off": "Position among other runs",
    "curves": "Learning curves",
    "risk-coverage": "Risk and coverage",
    "routing": "Accuracy and coverage of the router",
    "cascade": "Accuracy and cost of the cascade",
    "guide": "Guide",
    "fptt-fptt": "FPTT",
    "report-pruning": "Pruning",
    "report-quantization": "Quantization",
    "report-energy": "Energy",
    "footprint-7-profile": "Footprint",
    "tables": "Tables",
    "pictures": "Pictures",
    "config": "Config",
    "checkpoints": "Checkpoints and networks",
    "files": "Files",
}


def test_every_part_of_a_run_has_a_section_that_the_contents_lead_to(page: Page) -> None:
    headings = [attributes["id"] for attributes in page.all("h2")]
    links = [attributes["href"] for attributes in page.all("a")]
    assert sorted(headings, key=str) == sorted(SECTIONS)
    assert links == [f"#{ident}" for ident in headings]
    assert [word for word in page.words if word in SECTIONS.values()][: len(headings)] == [
        SECTIONS[str(ident)] for ident in headings
    ]


def test_ids_are_unique_and_nothing_is_asked_of_elsewhere(page: Page, markup: str) -> None:
    idents = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(idents) == len(set(idents))
    assert not page.all("script")
    assert not page.all("link")
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(str(value).startswith(("#", "data:image/png;base64,")) for value in sources)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "http://" not in markup
    assert "https://" not in markup
    assert "@import" not in markup
    assert "url(" not in markup


def test_each_chart_says_in_words_what_it_shows_and_holds_its_numbers(page: Page, markup: str) -> None:
    charts = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len(charts) >= 12
    assert all(len(str(attributes["aria-label"])) > 20 for attributes in charts)
    figures = markup.split("<figure")[1:]
    drawn = [each.split("</figure>")[0] for each in figures if 'role="img"' in each]
    assert len(drawn) == len(charts)
    assert all("<details" in each and "<table" in each for each in drawn)
    assert all(attributes["alt"] for attributes in page.all("img"))


@pytest.mark.parametrize(
    "words",
    [
        "all 2 epochs are there",
        "2.42 MB",
        "1.5 ms",
        "896 k MACs",
        "12.5 J",
        "1.23 kB",
        "666 samples/s",
        "not measured: a counter failed",
        "seed_everything: 7",
        "This run is on the front of 3 runs",
        "norm of W - W̄",
    ],
)
def test_numbers_have_units_and_the_run_tells_its_story(page: Page, words: str) -> None:
    assert words in page.text


def test_train_and_validation_share_a_chart_and_what_is_not_finite_is_told(page: Page) -> None:
    [loss] = [str(each["aria-label"]) for each in page.all("svg") if str(each.get("aria-label")).startswith("loss.")]
    assert "train: 2.5, 1 not finite" in loss
    assert "val: 1.5, 1 not finite" in loss
    [accuracy] = [
        str(each["aria-label"]) for each in page.all("svg") if str(each.get("aria-label")).startswith("accuracy.")
    ]
    assert "val: from 0.5 to 0.75, lowest 0.5, highest 0.75" in accuracy
    assert "test: 0.625" in accuracy


def test_a_picture_is_inside_the_page_as_it_was(page: Page, folder: Path) -> None:
    [image] = page.all("img")
    data = str(image["src"]).removeprefix("data:image/png;base64,")
    assert base64.b64decode(data) == (folder / "picture.png").read_bytes()


def test_sections_without_data_are_absent(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n")
    page = Page(render_report(tmp_path, tmp_path / "report.html"))
    assert [attributes["id"] for attributes in page.all("h2")] == ["files"]
    assert "its files do not tell" in page.text


def test_what_comes_from_files_is_text(tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(2)<" / "version_0"
    hostile: Any = {**PROFILE, "name": HOSTILE, "processor": HOSTILE, "layers": [{"name": HOSTILE, "macs": 5}] * 2}
    make_run(
        run,
        profile=hostile,
        pruning={**PRUNING, "saliency": HOSTILE, "layers": [{"layer": HOSTILE, "share": 1, "weights": HOSTILE}]},
        **{"a<b>": {**PROFILE, "latencies": [{HOSTILE: HOSTILE, "p50_ms": HOSTILE}]}},
    )
    (run / "config.yaml").write_text(yaml.safe_dump({"seed_everything": HOSTILE, HOSTILE: HOSTILE}))
    (run / "metrics.csv").write_text('epoch,step,"val/<script>""x",a<img src=x onerror=y>/b\n0,1,1,1\n1,2,2,2\n')
    (run / 'x" onload="y.csv').write_text(f'"<b>","c""d"\n"{HOSTILE[:25]}",<i>\n')
    (run / "x'><svg onload=y.png").write_bytes(png())
    markup = render_report(run, run / "report.html")
    page = Page(markup)
    assert not page.all("script")
    assert not page.all("b") + page.all("i")
    assert len(page.all("img")) == 2
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(1)</script>" in page.text
    assert "<script>alert(2)<" in page.text
    assert "\x00" not in markup


@pytest.mark.parametrize(
    "files",
    [
        {"profile": {**PROFILE, "input_shape": 5, "uncounted": "x", "layers": [3, {"name": None, "macs": "many"}]}},
        {"profile": {**PROFILE, "latencies": [None, {"p50_ms": [1]}], "parameters": None}},
        {"pruning": {**PRUNING, "history": 3, "layers": [[], {"share": "all"}]}},
        {"quantization": {**QUANTIZATION, "quantized": 3, "size": {"float": 4}, "latency": {}}},
        {"energy": {**ENERGY, "gaps": 1, "epochs": [None, {"epoch": math.inf, "train_joules": math.nan}]}},
        {"anything": [1, 2]},
    ],
    ids=["profile", "latencies", "pruning", "quantization", "energy", "list"],
)
def test_a_report_of_another_shape_costs_no_more_than_itself(tmp_path: Path, files: dict[str, Any]) -> None:
    page = Page(render_report(make_run(tmp_path / "run", **files), tmp_path / "report.html"))
    assert {"curves", "config"} <= {attributes["id"] for attributes in page.all("h2")}


def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 9}}))
    assert "2 of 9 epochs are there" in Page(render_report(run, run / "report.html")).text
    (run / "checkpoints" / "interrupted.ckpt").touch()
    assert "stopped by Ctrl-C or a scheduler" in Page(render_report(run, run / "report.html")).text


def test_a_hundred_thousand_rows_give_a_small_page_that_keeps_the_spike(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [f"0,{step},{77 if step == 54_321 else draw.random():.6f}" for step in range(100_000)]
    (tmp_path / "metrics.csv").write_text("\n".join(["epoch,step,train/loss", *rows]))
    markup = render_report(tmp_path, tmp_path / "report.html")
    assert len(markup) < 60_000
    page = Page(markup)
    assert "highest 77" in str(page.all("svg")[0]["aria-label"])
    assert "60 of 100,000 points" in page.text


def test_thinning_keeps_ends_extremes_and_gaps() -> None:
    points = [(float(step), math.nan if step == 500 else float(step == 321)) for step in range(1000)]
    kept = thinned(points, 20)
    assert len(kept) < 40
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert (321.0, 1.0) in kept
    assert any(math.isnan(y) for _, y in kept)


@pytest.mark.parametrize(
    ("values", "low", "high", "logarithmic"),
    [
        ([0.0, 1.0], -0.04, 1.04, False),
        ([3.0], 2.7, 3.3, False),
        ([], -0.04, 1.04, False),
        ([0.0, 0.0], -0.04, 1.0, False),
        ([0.001, 10.0], 0.001 * 10**-0.16, 10 * 10**0.16, True),
        ([math.nan, math.inf, 2.0, 4.0], 1.92, 4.08, False),
    ],
    ids=["plain", "constant", "none", "zeros", "decades", "not-finite"],
)
def test_an_axis_holds_its_finite_values(values: list[float], low: float, high: float, logarithmic: bool) -> None:
    scale = scale_of(values)
    assert (scale.low, scale.high) == pytest.approx((low, high))
    assert scale.logarithmic == logarithmic
    assert all(low <= tick <= high for tick in scale.ticks())


def test_a_line_breaks_where_a_value_is_missing() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 1.0), (4.0, 2.0)]
    chart = line_chart(Axes("loss", "step", "loss"), [Series("loss", points)])
    assert chart.count("<polyline") == 2
    assert line_chart(Axes("loss", "step", "loss"), [Series("loss", [(0.0, math.nan)])]) == ""


def test_axes_that_were_asked_for_must_be_there(folder: Path) -> None:
    out = folder / "report.html"
    with pytest.raises(ConfigurationError, match="no run has an axis 'nonsense'"):
        render_report(folder, out, Among(x="nonsense"))
    with pytest.raises(ConfigurationError, match=r"--x: the name of pruning/target does not tell which way is better"):
        render_report(make_target(folder.parent.parent / "target"), out, Among(x="pruning/target"))
    words = Page(render_report(folder, out, Among([folder.parent / "cheap"], y="test/accuracy"))).text
    assert "This run is on the front of 2 runs" in words
    beaten = Page(render_report(folder.parent / "beaten", out)).text
    assert "This run is not on the front of 3 runs" in beaten


def make_target(folder: Path) -> Path:
    return folder if folder.is_dir() else make_run(folder, pruning={**PRUNING, "target": 0.9})


@pytest.mark.slow
def test_tables_and_pictures_of_a_wandb_run_that_was_not_sent_are_shown(tmp_path: Path) -> None:
    import wandb

    from lightning_efficient.reporting._wandb_offline import read_wandb_file

    settings = wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True, console="off")
    run = wandb.init(project="tiny", name="<b>small", mode="offline", dir=tmp_path, settings=settings)
    table = wandb.Table(columns=["coverage", "selective risk"], data=[[0.5, 0.0], [1.0, 0.25]])
    for step in range(3):
        run.log({"trainer/global_step": 10 * step, "val/loss": math.nan if step == 1 else 3.0 - step})
    (tmp_path / "red.png").write_bytes(png())
    run.log({"selective/risk_coverage_table": table, "selective/picture": wandb.Image(str(tmp_path / "red.png"))})
    run.finish()
    [found] = tmp_path.glob("wandb/offline-run-*")
    [file] = found.glob("*.wandb")
    until = time.monotonic() + 20
    while not read_wandb_file(file).finished and time.monotonic() < until:  # its own process writes the rest later
        time.sleep(0.02)
    assert set(read_run(found).metrics) == {"trainer/global_step", "val/loss"}  # and not the rows of the table
    page = Page(render_report(found, found / "report.html"))
    idents = [attributes["id"] for attributes in page.all("h2")]
    assert {"results", "curves", "risk-coverage", "pictures"} <= set(idents)
    assert "<b>small" in page.text
    assert "finished" in page.words
    loss = next(str(each["aria-label"]) for each in page.all("svg") if str(each.get("aria-label")).startswith("loss."))
    assert "from 3 to 1" in loss
    assert len(page.all("img")) == 1
    file.write_bytes(file.read_bytes()[:-40])
    assert "killed, or still running" in Page(render_report(found, found / "report.html")).text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_a_browser_without_network_draws_the_page(markup: str, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "report.html").write_text(markup, encoding="utf-8")

    def browse(*options: str) -> subprocess.CompletedProcess[str]:
        where = (f"--user-data-dir={tmp_path}/profile", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr")
        common = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", *where)
        return subprocess.run(
            [str(BROWSER), *common, *options, (tmp_path / "report.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )

    shot = ("--hide-scrollbars", "--window-size=1000,2400", f"--screenshot={tmp_path}/page.png")
    browsed = browse("--dump-dom", *shot)
    if not (tmp_path / "page.png").exists():  # some versions do one thing at a time
        browse(*shot)
    assert [attributes["id"] for attributes in Page(browsed.stdout).all("h2")] == [
        attributes["id"] for attributes in Page(markup).all("h2")
    ]
    assert "CONSOLE" not in browsed.stderr
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape == (2400, 1000, 3)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 50
    assert counts.max() < 0.99 * counts.sum()
    assert (pixels[1200:] != pixels[-1, 0]).any()  # it is drawn down to there
