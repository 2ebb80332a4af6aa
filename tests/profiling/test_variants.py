"""Forms of a model side by side: what is timed, what differs, and why one cannot run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.profiling import variants
from lightning_efficient.profiling.budget import TimeBudget, TimeIsUp
from lightning_efficient.profiling.variant_costs import VariantComparison
from lightning_efficient.profiling.variant_forms import MAKERS, Form
from lightning_efficient.profiling.variants import VARIANTS, compare_variants, difference, variant_names

QUICK = {"min_run_time": 0.001, "threads": 1}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def compared(image: Tensor) -> VariantComparison:
    pytest.importorskip("onnxruntime")
    return compare_variants(
        network(), image, ["int8_weights", "onnx", "channels_last", "bf16"], batch_sizes=(1, 3), **QUICK
    )


def test_the_float_form_comes_first_and_then_the_order_asked_for(compared: VariantComparison) -> None:
    assert [row.name for row in compared.rows] == ["float", "int8_weights", "onnx", "channels_last", "bf16"]
    assert [row.reason for row in compared.rows] == [None] * 5
    assert (compared.threads, compared.device, compared.left_out) == (1, "cpu", ())


def test_every_form_is_timed_at_every_batch_size_in_the_same_rounds(compared: VariantComparison) -> None:
    for row in compared.rows:
        assert [timing.batch_size for timing in row.timings] == [1, 3]
        for timing in row.timings:
            assert 0 < timing.low <= timing.ratio <= timing.high
            assert timing.rounds == compared.rows[0].timings[(1, 3).index(timing.batch_size)].rounds >= 10
    assert {timing.ratio for timing in compared.rows[0].timings} == {1.0}


def test_outputs_differ_as_much_as_the_form_is_coarse(compared: VariantComparison) -> None:
    apart = {row.name: row.difference for row in compared.rows}
    assert apart["float"] == 0
    assert max(apart["channels_last"], apart["onnx"]) < 1e-5
    assert 1e-5 < apart["bf16"] < 0.05
    assert 1e-5 < apart["int8_weights"] < 0.05


def test_bytes_are_those_of_what_is_deployed(compared: VariantComparison) -> None:
    sizes = {row.name: row.bytes_on_disk for row in compared.rows}
    assert sizes["bf16"] < sizes["float"]
    assert sizes["channels_last"] == pytest.approx(sizes["float"], rel=0.05)
    assert sizes["onnx"] > 0


def test_json_and_back_gives_an_equal_record(compared: VariantComparison) -> None:
    assert VariantComparison.from_dict(json.loads(json.dumps(compared.to_dict()))) == compared


def test_the_module_stays_as_it_is(image: Tensor) -> None:
    module = network().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    compare_variants(module, image, ["bf16", "channels_last"], **QUICK)
    assert module.training
    assert {each.dtype for each in module.parameters()} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module[0].weight.is_contiguous()


def broken(error: Exception) -> Callable[[nn.Module, Tensor, int], Form]:
    def make(module: nn.Module, example: Tensor, threads: int) -> Form:
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MissingExtraError("'onnx' is not installed; install it with: pip install 'lightning-efficient[onnx]'"),
         "needs the extra onnx"),
        (ConfigurationError("no C++ compiler"), "no C++ compiler"),
        (RuntimeError("\n aten::eigh is not supported\nmore"), "aten::eigh is not supported"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (ValueError("x" * 500), "x" * 159 + "…"),
    ],
    ids=["extra", "compiler", "operator", "silent", "long"],
)  # fmt: skip
def test_a_form_that_cannot_be_made_has_the_reason(
    monkeypatch: pytest.MonkeyPatch, image: Tensor, error: Exception, reason: str
) -> None:
    monkeypatch.setitem(MAKERS, "onnx", broken(error))
    _, row = compare_variants(network(), image, ["onnx"], **QUICK).rows
    assert (row.name, row.reason, row.timings, row.bytes_on_disk) == ("onnx", reason, (), None)


def test_without_a_compiler_what_needs_one_says_so(monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    rows = compare_variants(network(), image, ["compile", "int8_static"], **QUICK).rows[1:]
    assert [row.reason for row in rows] == ["no C++ compiler (g++, clang++ or CXX)"] * 2


@pytest.mark.parametrize(
    ("module", "example", "name", "reason"),
    [
        (
            nn.Linear(4, 2),
            torch.zeros(1, 4),
            "channels_last",
            "no input has the four dimensions (N, C, H, W) of images",
        ),
        (nn.Bilinear(4, 4, 2), (torch.zeros(1, 4), torch.zeros(1, 4)), "onnx", "its input is not a single tensor"),
        (nn.ReLU(), torch.zeros(1, 4), "int8_weights", "the network has no layer whose weights can be quantised"),
    ],
    ids=["no image", "two inputs", "no weights"],
)
def test_what_a_module_does_not_allow_is_told(module: nn.Module, example: object, name: str, reason: str) -> None:
    assert compare_variants(module, example, [name], **QUICK).rows[1].reason.startswith(reason)


def test_a_form_that_fails_at_a_batch_size_only_is_left_out_there(
    monkeypatch: pytest.MonkeyPatch, image: Tensor
) -> None:
    def only_one(batch: Tensor) -> Tensor:
        if len(batch) > 1:
            raise RuntimeError("one sample only")
        return batch

    monkeypatch.setitem(MAKERS, "onnx", lambda module, example, threads: Form(only_one, 1))
    found = compare_variants(nn.Identity(), image, ["onnx"], batch_sizes=(1, 2), **QUICK)
    assert [timing.batch_size for timing in found.rows[1].timings] == [1]
    assert found.left_out == ("variant onnx at batch 2: one sample only",)


def test_what_takes_too_long_is_interrupted_and_written_down(monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    def never(module: nn.Module, example: Tensor, threads: int) -> Form:
        raise TimeIsUp

    monkeypatch.setitem(MAKERS, "bf16", never)
    found = compare_variants(network(), image, ["bf16", "channels_last"], **QUICK, budget=TimeBudget(60))
    assert [row.name for row in found.rows] == ["float", "channels_last"]
    assert found.left_out == ("variant bf16: does not fit into 60 s",)
    assert len(found.rows[1].timings) == 1


def test_without_time_nothing_but_the_float_form_is_left(image: Tensor) -> None:
    budget = TimeBudget(1e-9)
    found = compare_variants(network(), image, ["bf16"], **QUICK, budget=budget)
    assert [(row.name, row.timings) for row in found.rows] == [("float", ())]
    assert budget.left_out == [f"{what}: does not fit into 1e-09 s" for what in ("variant bf16", "variants at batch 1")]


def test_a_form_knows_the_threads_and_they_are_put_back(monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    seen, before = [], torch.get_num_threads()

    def make(module: nn.Module, example: Tensor, threads: int) -> Form:
        seen.append((threads, torch.get_num_threads()))
        return Form(module, 1)

    monkeypatch.setitem(MAKERS, "onnx", make)
    compare_variants(network(), image, ["onnx"], min_run_time=0.001, threads=before + 1)
    assert seen == [(before + 1, before + 1)]
    assert torch.get_num_threads() == before


def test_all_means_all_and_an_unknown_name_is_told() -> None:
    assert variant_names(["all"]) == VARIANTS == variants.VARIANTS
    with pytest.raises(ConfigurationError, match=r"got 'int8_weight'. Did you mean 'int8_weights'"):
        variant_names(["int8_weight"])


def test_a_difference_is_a_share_of_the_largest_number() -> None:
    expected = {"a": torch.tensor([1.0, -10.0]), "b": torch.tensor([2])}
    assert difference({"a": torch.tensor([1.5, -10.0]), "b": torch.tensor([7])}, expected) == pytest.approx(0.05)
    assert difference(torch.tensor([0.5]), torch.zeros(1)) == 0.5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_forms_run_and_tell_what_their_figures_are_worth() -> None:
    pytest.importorskip("torchao")
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    found = compare_variants(module, torch.randn(1, 4), ["compile", "int8_static"], **QUICK)
    assert [row.reason for row in found.rows] == [None] * 3
    assert found.row("compile").difference < 1e-5
    assert "calibrated on the example alone" in found.row("int8_static").note
    assert replace(found, rows=()).row("compile") is None
