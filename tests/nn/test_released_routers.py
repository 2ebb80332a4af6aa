"""The released routers against what the released code printed, and the guide it calls a router too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.guides import FeaturesGuide
from lightning_efficient.nn.released_routers import PaperRouter, ReleasedHeadRouter
from lightning_efficient.nn.router_features import released_logit_features

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "hybrid.npz")
CLOSE = {"rtol": 0, "atol": 1e-10}


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def weights(prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): array(name) for name in GOLDEN.files if name.startswith(prefix)}


PAPER, HEAD, GUIDE = "era/no_ft_router_", "head/hybrid_router_", "head/disk_router_"


def test_the_features_are_those_of_the_released_code() -> None:
    torch.testing.assert_close(released_logit_features(array("in/s_logits")), array("head/router_features"), **CLOSE)


def test_fewer_classes_than_compared_probabilities_give_fewer_features() -> None:
    seen = released_logit_features(torch.randn(5, 4), top_k=10)
    assert seen.shape == (5, 17)
    matrix = seen[:, 1:].view(5, 4, 4)
    assert torch.equal(matrix, -matrix.mT)


def test_the_paper_router_computes_what_the_released_gate_does() -> None:
    router, logits = PaperRouter(24).double(), array("in/s_logits")
    router.load_released(weights(f"{PAPER}sd_init/"))
    torch.testing.assert_close(router.gate(logits), array(f"{PAPER}train_out"), **CLOSE)
    wanted = array(f"{PAPER}eval_out_after_one_train_fwd")
    torch.testing.assert_close(router.eval().gate(logits), wanted, **CLOSE)
    torch.testing.assert_close(router(logits), wanted[:, 0] - wanted[:, 1], **CLOSE)


def test_the_head_router_computes_what_the_released_one_does() -> None:
    router, given = ReleasedHeadRouter(24, 6).double(), (array("in/s_logits"), array("in/s_ft"))
    router.load_released({f"module.{name}": value for name, value in weights(f"{HEAD}sd_init/").items()})
    torch.testing.assert_close(router.keep_logit(*given), array(f"{HEAD}train_out").squeeze(1), **CLOSE)
    wanted = array(f"{HEAD}eval_out_after_one_train_fwd").squeeze(1)
    torch.testing.assert_close(router.eval()(*given), -wanted, **CLOSE)


def test_the_released_guide_router_is_our_guide_on_the_teachers_features() -> None:
    guide, features = FeaturesGuide(5, hidden=(24, 64, 24)).double(), array("in/t_ft")
    guide.load_state_dict({name.replace("routing", "head"): v for name, v in weights(f"{GUIDE}sd_init/").items()})
    torch.testing.assert_close(guide.head(features).sigmoid(), array(f"{GUIDE}train_out"), **CLOSE)
    wanted = array(f"{GUIDE}eval_out_after_one_train_fwd")
    torch.testing.assert_close(guide.eval().head(features).sigmoid(), wanted, **CLOSE)


def test_the_paper_router_has_the_printed_size() -> None:
    router = PaperRouter(1000)
    macs = sum(layer.weight.numel() for layer in router.routing if isinstance(layer, torch.nn.Linear))
    assert macs == 101 * 256 + 256 * 64 + 64 * 2
    assert all((layer.bias == 0.01).all() for layer in router.routing if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize("generation", ["first", "second"])
@pytest.mark.parametrize("classes", [2, 30])
def test_the_paper_router_learns_to_ask_where_the_base_is_unsure(generation: str, classes: int) -> None:
    torch.manual_seed(0)
    sure = torch.rand(256) < 0.7
    logits = torch.randn(256, classes) * torch.where(sure, 8.0, 0.2).unsqueeze(1)
    router = PaperRouter(classes, generation=generation)
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        router.loss(logits, None, sure, torch.ones(256, dtype=torch.bool)).backward()
        optimizer.step()
    scores = router.eval()(logits)
    assert scores[~sure].mean() > scores[sure].mean() + 1


def test_the_head_router_learns_the_proxy() -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(128, 5), torch.randn(128, 6)
    base, large = features[:, 0] > 0, features[:, 1] > 0
    router = ReleasedHeadRouter(5, 6)
    optimizer = torch.optim.Adam(router.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        router.loss(logits, features, base, large).backward()
        optimizer.step()
    asked = router.eval()(logits, features) > 0
    assert (asked == (~base & large)).float().mean() > 0.95


def test_autocast_changes_no_score() -> None:
    logits, features = torch.randn(4, 5), torch.randn(4, 6)
    for router in (PaperRouter(5).eval(), ReleasedHeadRouter(5, 6).eval()):
        plain = router(logits, features)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(router(logits, features), plain)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: PaperRouter(24).load_released(weights(f"{HEAD}sd_init/")),
            r"do not fit PaperRouter: 'routing.0.num_batches_tracked' is missing",
        ),
        (
            lambda: PaperRouter(24, top_k=5).load_released(weights(f"{PAPER}sd_init/")),
            r"'routing.0.weight' has shape \(101,\), and \(26,\) is needed",
        ),
        (lambda: ReleasedHeadRouter(24, 0), r"feature_dim=0 must be an integer of at least 1"),
        (lambda: ReleasedHeadRouter(24, 6).eval()(torch.zeros(2, 24)), r"needs features of shape \(N, 6\), got none"),
        (lambda: PaperRouter(24)(torch.zeros(1, 24)), r"batches of 2 or more samples in training, got 1"),
        (lambda: PaperRouter(24, label="prox"), r"label='prox' is not one of"),
        (lambda: PaperRouter(24, generation="third"), r"generation='third' is not one of"),
        (lambda: PaperRouter(24, max_query_rate=45), r"max_query_rate=45 is outside \[0, 1\]"),
        (lambda: PaperRouter(24, query_divisor="small"), r"query_divisor='small' must be a number"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(call, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
