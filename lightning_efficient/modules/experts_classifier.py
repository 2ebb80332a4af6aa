"""Experts behind a gate as the small model of a hybrid: keep, ask a second expert, or ask the large model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.confidence import msp
from lightning_efficient.functional.load_balance import load_balance_loss
from lightning_efficient.modules._stages import Stage
from lightning_efficient.modules.hybrid_classifier import HybridClassifier
from lightning_efficient.nn.experts import ExpertOutputs, ExpertsNetwork, ExpertsRouter
from lightning_efficient.profiling import count_macs
from lightning_efficient.reporting import log_table

ACTIONS = ("base", "second", "global")
"""Who answers: the chosen expert, the runner-up, the global model."""


class ActionTotals(Metric):
    """How often each action was taken, and how often its answer was right, for several prices.

    Args:
        prices: Number of prices.
        kwargs: What every ``torchmetrics.Metric`` takes.
    """

    full_state_update: bool = False
    taken: Tensor
    right: Tensor

    def __init__(self, prices: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("taken", "right"):
            zeros = torch.zeros(prices, len(ACTIONS), dtype=torch.long)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, actions: Tensor, correct: Tensor) -> None:
        """Add a batch.

        Args:
            actions: What is done at each price, int64 ``(prices, N)``.
            correct: Whether each action is right, bool ``(N, 3)``.
        """
        chosen = nn.functional.one_hot(actions, len(ACTIONS))
        self.taken += chosen.sum(1)
        self.right += (chosen * correct.long()).sum(1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the share of each action ``(prices, 3)`` and the accuracy ``(prices,)``, float64."""
        samples = self.taken.sum(1, keepdim=True).clamp(min=1)
        return self.taken.double() / samples, (self.right.sum(1, keepdim=True).double() / samples).squeeze(1)


class ExpertsClassifier(HybridClassifier):
    """A hybrid whose base is a network of experts, and which may ask a second expert before the global model.

    The base's stage adds the load-balance loss of its gate. The router learns whether the chosen expert, the runner-up
    and the global model are right, and the action is the one with the largest ``P(right) - price * cost``. All that a
    hybrid of two models reports is of the chosen expert and the global model; besides, validation and test log for each
    of ``report_prices`` the accuracy, the MACs per sample and the share of each action, as
    ``val/price_0.1_accuracy``, ``_macs``, ``_second_share`` and ``_global_share``, and test a table. Evaluation runs
    the base twice and each runner-up once. ``predict`` runs what the action says and no more, unless a threshold was
    calibrated, whose promise is about two models.

    Args:
        base: The network of experts.
        global_model: Name of a timm model, or a module; the large one.
        prices: Cost of each action, base, second expert and global model, in any unit; by default their MACs per sample
            over those of the global model.
        price: What one unit of cost is worth in accuracy, 0 or more, for prediction.
        report_prices: Values of ``price`` for which validation and test report.
        balance_weight: Weight of the load-balance loss, 0 or more.
        router_features: Whether the router sees the input of the base's classifier beside its logits.
        router_kwargs: Options of ``ExpertsRouter``.
        outputs_folder: See :class:`HybridClassifier`.
        kwargs: Further options of :class:`HybridClassifier`, except ``router``.

    Raises:
        ConfigurationError: a base without experts, or an option that cannot work.
    """

    def __init__(
        self,
        base: nn.Module,
        global_model: str | nn.Module,
        prices: list[float] | None = None,
        price: float = 0.1,
        report_prices: list[float] | None = None,
        balance_weight: float = 0.05,
        router_features: bool = True,
        router_kwargs: dict[str, Any] | None = None,
        outputs_folder: str | None = "runs/outputs",
        **kwargs: Any,
    ) -> None:
        if not isinstance(base, ExpertsNetwork):
            raise ConfigurationError(
                f"model.base is a {type(base).__name__}; give a lightning_efficient.nn.experts.ExpertsNetwork, or use "
                "HybridClassifier"
            )
        reported = [0.0, 0.05, 0.1, 0.2, 0.5] if report_prices is None else list(report_prices)
        for option, values in (("price", [price]), ("report_prices", reported), ("balance_weight", [balance_weight])):
            if not all(0 <= value < float("inf") for value in values):
                raise ConfigurationError(f"model.{option} is {values}; finite numbers of 0 or more are allowed")
        if prices is not None and (len(prices) != len(ACTIONS) or not all(0 <= each < float("inf") for each in prices)):
            raise ConfigurationError(
                f"model.prices is {prices}; give a number of 0 or more for each of {', '.join(ACTIONS)}"
            )
        router = ExpertsRouter(
            base.head.out_features, base.feature_dim if router_features else 0, **(router_kwargs or {})
        )
        super().__init__(
            base=base,
            global_model=global_model,
            router=router,
            router_features=router_features,
            # outputs of a runner-up are beside the others'
            outputs_folder=None if outputs_folder is None else str(Path(outputs_folder) / "experts"),
            **kwargs,
        )
        if self.router_data == "out_of_fold" or "joint" in self.plan.names:
            raise ConfigurationError(
                "model.router_data out_of_fold and the stage joint are not there for experts; take held_out, and the "
                "stages base, global and router"
            )
        self.prices, self.price, self.report_prices = prices, price, reported
        self.balance_weight = balance_weight
        self.val_actions, self.test_actions = ActionTotals(len(reported)), ActionTotals(len(reported))
        self._action_macs: tuple[int, int, int] | None = None

    @property
    def experts(self) -> ExpertsNetwork:
        """The base."""
        return cast(ExpertsNetwork, self.base)

    def expert_outputs(self, inputs: Tensor) -> ExpertOutputs:
        """Return what the base says, with what a second expert needs."""
        return self.experts.outputs(self.base_fit(inputs))

    def action_macs(self, inputs: Tensor) -> tuple[int, int, int]:
        """Return the MACs of one input for each action; the router is part of each.

        Args:
            inputs: A batch of any size, of which the first is looked at.
        """
        if self._action_macs is None:
            one = inputs[:1]
            edge, asked = (count_macs(graph, one).macs for graph in (self.edge_graph(), self.global_graph()))
            stem = self.experts.stem(self.base_fit(one))
            each = [count_macs(expert, stem).macs for expert in self.experts.experts]
            head = count_macs(self.experts.head, stem.new_zeros(1, self.experts.feature_dim)).macs
            self._action_macs = (edge, edge + round(sum(each) / len(each)) + head, edge + asked)
        return self._action_macs

    def action_prices(self, inputs: Tensor) -> Sequence[float]:
        """Return what each action costs, as given or in MACs of the global model."""
        if self.prices is not None:
            return self.prices
        macs = self.action_macs(inputs)
        return [each / max(macs[2] - macs[0], 1) for each in macs]

    # ------------------------------------------------------------------ training

    def _network_loss(self, stage: Stage, inputs: Tensor, target: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        gated: list[Tensor] = []
        watch = self.experts.gate.register_forward_hook(lambda module, args, output: gated.append(output))
        try:
            loss, logits = super()._network_loss(stage, inputs, target, keys)
        finally:
            watch.remove()
        if stage.name == "base" and self.balance_weight and gated:
            probabilities = gated[-1].softmax(-1)
            balance = load_balance_loss(probabilities, probabilities.argmax(1))
            self.log("train/load_balance", balance, batch_size=max(len(target), 1))
            loss = loss + self.balance_weight * balance
        return loss, logits

    def _router_loss(self, stage: Stage, inputs: Tensor, target: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        if len(target) < 2:  # batch normalisation needs two
            return super()._router_loss(stage, inputs, target, keys)
        said = self._frozen_outputs(inputs, keys)
        logits, features = said["logits"], said.get("features")
        correct = [said[name].argmax(1) == target for name in ("logits", "second_logits", "global_logits")]
        self._gather(logits, features, inputs)
        return self.router.loss(logits, features, correct[0], torch.stack(correct[1:], 1)), logits

    def _ask(self, inputs: Tensor, keys: Tensor | None) -> dict[str, Tensor]:
        outputs = self.expert_outputs(inputs)
        said = {
            "logits": outputs.logits,
            "second_logits": self.experts.second(outputs)[0],
            "global_logits": self.global_logits(inputs),
        }
        return said | ({"features": outputs.features} if self.router.needs_features else {})

    # ------------------------------------------------------------------ validation, test, prediction

    def _evaluate(self, batch: Any, stage: str, metrics: Any = None) -> dict[str, Tensor]:
        said = super()._evaluate(batch, stage, metrics)
        inputs, target, *_ = batch
        if len(inputs):
            self.action_macs(inputs)
            outputs = self.expert_outputs(inputs)
            second = self.experts.second(outputs)[0].argmax(1)
            predictions = torch.stack([said["stage_predictions"][:, 0], second, said["stage_predictions"][:, 1]], 1)
            actions = torch.stack([self.choose(outputs, inputs, price) for price in self.report_prices])
            getattr(self, f"{stage}_actions").update(actions, predictions == target.unsqueeze(1))
        return said

    def choose(self, outputs: ExpertOutputs, inputs: Tensor, price: float | None = None) -> Tensor:
        """Return what to do with each input: 0 keep, 1 ask the second expert, 2 ask the global model; int64 ``(N,)``.

        Args:
            outputs: What :meth:`expert_outputs` says of the inputs.
            inputs: The inputs, whose size tells the costs.
            price: What one unit of cost is worth in accuracy; by default the module's.
        """
        features = outputs.features if self.router.needs_features else None
        router = cast(ExpertsRouter, self.router)
        worth = self.price if price is None else price
        return router.choose(outputs.logits, features, self.action_prices(inputs), worth)

    def _report(self, stage: str) -> None:
        super()._report(stage)
        totals = getattr(self, f"{stage}_actions")
        shares, accuracies = totals.compute()
        totals.reset()
        macs, rows = self._action_macs, []
        right = accuracies.reshape(-1).tolist()  # torchmetrics makes a number of the vector of one price
        for price, taken, accuracy in zip(self.report_prices, shares.tolist(), right, strict=True):
            cost = None if macs is None else sum(each * one for each, one in zip(taken, macs, strict=True))
            values = {"accuracy": accuracy, "macs": cost, "second_share": taken[1], "global_share": taken[2]}
            for name, value in values.items():
                if value is not None:
                    self.log(f"{stage}/price_{price:g}_{name}", value, sync_dist=True)
            rows.append([price, accuracy, cost, *taken])
        if stage == "test" and not is_rehearsal(self.trainer):
            columns = ["price", "accuracy", "macs", *(f"{name}_share" for name in ACTIONS)]
            log_table(self.trainer, "hybrid/prices", columns, rows)

    def on_predict_start(self) -> None:
        """Build the predictor of a calibrated threshold, if there is one."""
        if self.routing is not None:
            super().on_predict_start()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | Sequence[str]]:
        """Return ``prediction``, ``confidence``, ``source`` (base, second, global) and ``query_score`` per input."""
        if self.routing is not None:
            return super().predict_step(batch, batch_idx)
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        outputs = self.expert_outputs(inputs)
        actions = self.choose(outputs, inputs)
        prediction, confidence = outputs.logits.argmax(1), msp(outputs.logits)
        for number in (1, 2):
            rows = (actions == number).nonzero().squeeze(1)
            if len(rows):
                logits = self.experts.second(outputs, rows)[0] if number == 1 else self.global_logits(inputs[rows])
                prediction = prediction.index_copy(0, rows, logits.argmax(1))
                confidence = confidence.index_copy(0, rows, msp(logits).to(confidence.dtype))
        return {
            "prediction": prediction,
            "confidence": confidence,
            "source": [ACTIONS[number] for number in actions.tolist()],
            "query_score": self.router(outputs.logits, outputs.features if self.router.needs_features else None),
        }
