from __future__ import annotations

import pytest

from lightning_efficient.cli.arguments import CLASSIFIER, expand
from lightning_efficient.cli.config_files import find
from lightning_efficient.errors import ConfigurationError

QUICKSTART = str(find("quickstart"))
RESNET = ["--model", CLASSIFIER, "--model.backbone", "resnet18"]


def expanded(*words: str) -> list[str]:
    return expand(words, {"resnet18"}.__contains__)


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (["--config", "quickstart"], ["--config", QUICKSTART]),
        (["--config=quickstart"], ["--config", QUICKSTART]),
        (["-c", "quickstart"], ["--config", QUICKSTART]),
        (["-c=quickstart.yaml"], ["--config", QUICKSTART]),
        (["--config", QUICKSTART], ["--config", QUICKSTART]),
        (["--config", "{trainer: {max_epochs: 1}}"], ["--config", "{trainer: {max_epochs: 1}}"]),
        (["--timm", "resnet18"], RESNET),
        (["--timm=resnet18"], RESNET),
        (["--model", "resnet18"], RESNET),
        (["--model=resnet18"], RESNET),
        (["--model", "ImageClassifier"], ["--model", "ImageClassifier"]),
        (["--data=Digits", "--model.loss=bce"], ["--data=Digits", "--model.loss=bce"]),
    ],
)
def test_short_forms_are_written_out(words: list[str], meaning: list[str]) -> None:
    assert expanded("fit", *words, "--trainer.max_epochs", "3") == ["fit", *meaning, "--trainer.max_epochs", "3"]


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (["profile", "--threads", "1", "2", "--layers", "3"], ["--threads", "[1,2]", "--layers", "3"]),
        (["profile", "--batch_sizes=1", "8"], ["--batch_sizes", "[1,8]"]),
        (["profile", "--variants", "bf16"], ["--variants", "[bf16]"]),
        (["profile", "--threads", "-1"], ["--threads", "[-1]"]),
        (["profile", "--threads", "[1, 2]", "--variants=[all]"], ["--threads", "[1, 2]", "--variants", "[all]"]),
        (["profile", "--threads", "null"], ["--threads", "null"]),
        (["profile", "--threads", "[1,", "2]"], ["--threads", "[1, 2]"]),
        (["profile", "--threads"], ["--threads"]),
        (["profile", "--input_shape", "3", "32", "32", "--timm", "resnet18"], ["--input_shape", "[3,32,32]", *RESNET]),
        (["export", "--formats", "torch", "onnx", "--timm", "resnet18"], ["--formats", "[torch,onnx]", *RESNET]),
        (["fit", "--threads", "1", "2"], ["--threads", "1", "2"]),
    ],
    ids=[
        "several", "equals", "one", "negative", "lists", "null", "split list", "nothing", "shape", "export", "fit",
    ],
)  # fmt: skip
def test_values_that_follow_one_by_one_become_a_list(words: list[str], meaning: list[str]) -> None:
    assert expanded(*words) == [words[0], *meaning]


def test_configs_keep_their_order() -> None:
    words = expanded("fit", "--config", "quickstart", "--config", "trainer/bf16")
    assert words == ["fit", "--config", QUICKSTART, "--config", str(find("trainer/bf16"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "--config needs a value"),
        (["--config", "--timm", "resnet18"], "--config needs a value"),
        (["--timm"], "--timm needs a value"),
        (["--config", "quickstrat"], "Did you mean 'quickstart'"),
        (["--timm", "resnet18", "--model", "ImageClassifier"], "--timm and --model both name the model"),
        (["--timm=resnet18", "--model=ImageClassifier"], "--timm and --model both name the model"),
        (["--config", "search/digits"], "--config search/digits: this file is for search --space"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        expanded("profile", *words)
