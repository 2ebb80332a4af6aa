"""A small model that answers what it can, a large one for the rest, and the router between them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient._lightning_compat import hyperparameters_are_given
from lightning_efficient._trainer import average_anew, gather_objects, is_rehearsal, refuse_shards
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional.released_hybrid import joint_head_loss
from lightning_efficient.functional.schedules import CosineSchedule, Schedule
from lightning_efficient.inference.routing_thresholds import CalibratedRouting
from lightning_efficient.modules._classifier import number_of_classes
from lightning_efficient.modules._hybrid_training import PATH_POINTS, HybridTraining
from lightning_efficient.modules._optimizer_options import check_group_options
from lightning_efficient.modules._router_samples import RouterData, RouterSamples
from lightning_efficient.modules._stages import StagePlan
from lightning_efficient.nn.backbones import data_config
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.guides import LogitsGuide
from lightning_efficient.nn.hybrid_graphs import EdgeGraph, GlobalGraph
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.networks import as_network
from lightning_efficient.nn.routers import Router, build_router
from lightning_efficient.nn.views import ViewTap

STAGES = ("base", "global", "router", "joint")
_KEPT = "hybrid_classifier"


class HybridClassifier(HybridTraining):
    """Answer easy inputs with a small model and ask a large one about the others, as a router decides.

    Training goes through ``stages``: the base model, the global model, the router on what both say of samples that
    they did not learn, and, if wanted, base and global model again with the weights that the router gives each sample,
    or base and router together. Networks that come with weights need the router's stage alone.

    Steps take ``(inputs, labels)``, with the key of each sample as third where the samples are split, and return
    ``{"loss", "logits", "target"}``, in validation and test with ``query_score`` ``(N,)`` (larger: ask the global
    model), its negative as ``confidence``, and ``stage_predictions`` ``(N, 2)``, the classes of base and global model.
    ``logits`` are the base's. Validation logs ``accuracy``, that of the target coverage by the order of these very
    inputs, ``base_accuracy``, ``global_accuracy``, the area under accuracy over coverage, and how far the best order of
    the same inputs is; once there is a threshold also ``coverage`` and ``routed_accuracy``, what the threshold in force
    does. Test adds a table with MACs and measured latency at each coverage, and a picture. ``predict`` routes for real:
    one call of the global model per batch.

    Training costs what the stage's network costs, in the router's stage a forward pass of both networks, once per
    sample where samples are not augmented.

    Args:
        base: Name of a timm model, or a module; the small one.
        global_model: Likewise; the large one.
        router: ``gain`` (how much more often the global model is right), ``proxy`` (the published label), ``paper``
            (the published network), a score of the base's logits (``msp``, ``margin``, ``logit_margin``, ``entropy``,
            ``gini``, ``energy``, ``energy_softmax``, ``max_logit``), or a ``Router``.
        num_classes: Number of classes; by default what the base has.
        in_chans: Channels of the images; ``null`` for inputs that are no images.
        stages: What learns for how many epochs, in this order: entries ``{base: 15}``, ``{global: 15}``, ``{router:
            10}``, ``{joint: 5}``. By default the router, as long as the run.
        router_data: ``held_out``: a share of the training samples is the router's alone; ``out_of_fold``: the router
            learns each from copies of the networks that did not; ``all``: every sample, right where the networks were
            trained on others. By default ``held_out`` if a stage trains a network, else ``all``.
        router_share: The router's share of the training samples, for ``held_out``.
        folds: Number of copies, for ``out_of_fold``.
        router_features: Whether a learned router sees the input of the base's classifier beside its logits.
        router_kwargs: Options of the router, such as ``{hidden: 64}``.
        router_optimizer: What the optimiser's options are for the router, such as ``{lr: 0.002}``.
        target_coverage: Share of inputs that the base shall answer until a threshold is calibrated. The threshold is
            that of the training samples as the router saw them: where these are augmented, they are harder than others,
            and the base answers more than that.
        reweight: Whether a network's stage after a router's weighs the inputs that it will get twice.
        joint_kwargs: Options of the loss of the stage ``joint``; see ``functional.joint_head_loss``.
        base_kwargs: Further arguments of ``timm.create_model`` for the base.
        global_kwargs: Likewise for the global model.
        base_pretrained: Whether the base starts from timm's weights.
        global_pretrained: Whether the global model does.
        base_checkpoint: File with the base's weights.
        global_checkpoint: File with the global model's weights.
        base_image_size: Height and width to which images are resized for the base; by default as they come.
        global_image_size: Likewise for the global model.
        outputs_folder: Where the networks' outputs are kept for the router, where samples are not augmented; ``null``
            to compute them each time.
        optimizer: From parameters to an optimiser; AdamW as torch has it when not given.
        schedule: Factor on all learning rates over the progress of each stage; by default a cosine to zero.
        latency_batch_size: Batch size of the latencies that ``test`` measures beside that of one; 0 for none.

    Raises:
        ConfigurationError: an unknown name, other classes of base and global model, or a value that cannot work.

    Reference:
        Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. ICLR 2023. Jitkrittum
        et al. When Does Confidence-Based Cascade Deferral Suffice? NeurIPS 2023: the gain.
    """

    threshold: Tensor
    threshold_path: Tensor

    def __init__(
        self,
        base: str | nn.Module,
        global_model: str | nn.Module,
        router: str | nn.Module = "gain",
        num_classes: int | None = None,
        in_chans: int | None = 3,
        stages: list[dict[str, int]] | None = None,
        router_data: RouterData | None = None,
        router_share: float = 0.4,
        folds: int = 3,
        router_features: bool = True,
        router_kwargs: dict[str, Any] | None = None,
        router_optimizer: dict[str, Any] | None = None,
        target_coverage: float = 0.7,
        reweight: bool = True,
        joint_kwargs: dict[str, Any] | None = None,
        base_kwargs: dict[str, Any] | None = None,
        global_kwargs: dict[str, Any] | None = None,
        base_pretrained: bool = False,
        global_pretrained: bool = False,
        base_checkpoint: str | None = None,
        global_checkpoint: str | None = None,
        base_image_size: int | None = None,
        global_image_size: int | None = None,
        outputs_folder: str | None = "runs/outputs",
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        latency_batch_size: int = 64,
    ) -> None:
        super().__init__()
        check_fraction("model.target_coverage", target_coverage, zero=True)
        if not 0 < router_share < 1:
            raise ConfigurationError(f"model.router_share is {router_share}; it must be between 0 and 1")
        if folds < 2:
            raise ConfigurationError(f"model.folds is {folds}; it must be 2 or more")
        if router_data is not None:
            check_choice("model.router_data", router_data, get_args(RouterData))
        if latency_batch_size < 0:
            raise ConfigurationError(f"model.latency_batch_size is {latency_batch_size}; it must be 0 or more")
        # given as Python objects they could not be loaded from a checkpoint; from a config they are plain values
        objects = {"base": base, "global_model": global_model, "router": router}
        modules = [name for name, value in objects.items() if isinstance(value, nn.Module)]
        ignored = () if hyperparameters_are_given() else ("optimizer", "schedule", *modules)
        self.save_hyperparameters(ignore=ignored)
        self.plan = StagePlan([{"router": 1}] if stages is None else stages, STAGES, "model.stages")
        self._follows_run = stages is None
        made: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
        self.base = as_network(base, "base", pretrained=base_pretrained, options=base_kwargs, **made)
        self.global_model = as_network(
            global_model, "global", pretrained=global_pretrained, options=global_kwargs, name="global_model", **made
        )
        self.in_chans = in_chans
        self.data_config = data_config(self.base, in_chans or 3) if isinstance(base, str) else {}
        plain = ViewTap(self.base)
        self.num_classes = number_of_classes(num_classes, plain.num_classes, "base")
        theirs = ViewTap(self.global_model).num_classes
        if theirs not in (None, self.num_classes):
            raise ConfigurationError(
                f"model.global_model has {theirs} classes and the base {self.num_classes}; both must have the same "
                "classes in the same order: set model.num_classes, or take another model"
            )
        features = (plain.feature_dim or 0) if router_features else 0
        self.router: Router = build_router(router, self.num_classes, features, router_kwargs)
        self.router_name = router if isinstance(router, str) else type(router).__name__
        self._tap = ViewTap(self.base, features=self.router.needs_features)
        # a score has nothing to learn, and in its stage an optimiser, a scaler of gradients and DDP want something
        self.idle = None if self.router.learns else nn.Parameter(torch.zeros(()))
        if "joint" in self.plan.names and not self.router.learns:
            raise ConfigurationError(
                f"model.stages has a joint stage, and the router {self.router_name!r} has nothing to learn; take gain, "
                "proxy or paper, or leave the stage out"
            )
        self.joint_kwargs = joint_kwargs or {}
        _check_joint_options(self.joint_kwargs)
        self.joint_guide = LogitsGuide(self.num_classes) if "joint" in self.plan.names else None
        self.base_fit = InputFit(in_chans or 1, base_image_size)
        self.global_fit = InputFit(in_chans or 1, global_image_size)
        self.folds = nn.ModuleDict()
        self.router_data: RouterData = router_data or ("held_out" if self.plan.names - {"router"} else "all")
        self.target_coverage, self.reweight = target_coverage, reweight
        self.latency_batch_size = latency_batch_size
        self.register_buffer("threshold", torch.tensor(torch.nan))
        self.register_buffer("threshold_path", torch.full((PATH_POINTS, 1), torch.nan))
        self.routing: CalibratedRouting | None = None
        # no default in the signature: a config that names another class would inherit AdamW's weight decay
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.schedule: Schedule = schedule or CosineSchedule(1.0, 0.0)
        self._router_optimizer = router_optimizer or {}
        self._split = (router_share, folds)
        self._outputs_folder = outputs_folder
        self._checkpoints = {"base": base_checkpoint, "global": global_checkpoint}
        self._named = {"base": base, "global": global_model}
        self._pretrained = {"base": base_pretrained, "global": global_pretrained}
        self._trained: set[str] = set()
        self._keyed: Any = None
        self.begin_training()
        for name in ("base", "global", "router"):
            if name not in self.plan.names and not (name != "global" and "joint" in self.plan.names):
                self._network(name).requires_grad_(False)
        self.add_metrics()

    # ------------------------------------------------------------------ what the networks say

    def base_outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the base's class scores ``(N, C)``, and the input of its classifier if the router looks at it."""
        views = self._tap(self.base_fit(inputs))
        return views.logits, views.features

    def global_logits(self, inputs: Tensor) -> Tensor:
        """Return the global model's class scores ``(N, C)``."""
        return self.global_model(self.global_fit(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the base's class scores ``(N, C)``."""
        return self.base(self.base_fit(inputs))

    def edge_graph(self) -> nn.Module:
        """Return what runs at the edge: from inputs to class scores ``(N, C)`` and query score ``(N,)``."""
        return EdgeGraph(self.base, self.router, self.base_fit)

    def global_graph(self) -> nn.Module:
        """Return what runs in the cloud: from the same inputs to class scores ``(N, C)``."""
        return GlobalGraph(self.global_model, self.global_fit)

    # ------------------------------------------------------------------ before training

    def setup(self, stage: str) -> None:
        """Load first weights, settle each network's normalisation, and split the training samples."""
        super().setup(stage)
        self._settle_inputs()
        if self.trainer.ckpt_path is None:
            for name, path in self._checkpoints.items():
                if path is not None:
                    load_weights(self._network(name), path, option=f"model.{name}_checkpoint")
        if stage != "fit":
            return
        refuse_shards(self.trainer, type(self).__name__)
        self._check_weights()
        self._keep_weights()  # a second fit goes on with the weights of the first
        self.routing = None  # calibrated for weights that change now
        if not self._follows_run and not is_rehearsal(self.trainer):
            self.plan.check_length(self.trainer.max_epochs)
        data: Any = getattr(self.trainer, "datamodule", None)
        share, folds = self._split
        self.begin_training()
        self._samples = RouterSamples(self.router_data, data, share=share, folds=folds, seed=0)
        stores = self._outputs_folder is not None and "router" in self.plan.names and _repeats(data)
        if (self._samples.splits or stores) and not data.sample_keys:
            data.sample_keys, self._keyed = True, data
        if self.router_data == "out_of_fold" and not self.folds:
            for name in ("base", "global"):
                if name in self.plan.names:
                    self.folds[name] = nn.ModuleList(deepcopy(self._network(name)) for _ in range(folds))
            average_anew(self.trainer, self)

    def teardown(self, stage: str) -> None:
        """Leave the data module as it was."""
        if self._keyed is not None:
            self._keyed.sample_keys, self._keyed = False, None

    def _check_weights(self) -> None:
        for name, given in self._named.items():
            joint = name == "base" and "joint" in self.plan.names
            has = self._pretrained[name] or self._checkpoints[name] or name in self.plan.names | self._trained or joint
            if isinstance(given, str) and not has and self.trainer.ckpt_path is None:
                option = "global_model" if name == "global" else name
                raise ConfigurationError(
                    f"model.{option} {given} has no trained weights; give model.{name}_checkpoint, set "
                    f"model.{name}_pretrained to true, or train it first by an entry {{{name}: 15}} of model.stages"
                )

    def _keep_weights(self) -> None:
        """Load no files of first weights any more."""
        self._checkpoints = dict.fromkeys(self._checkpoints)
        self._trained = set(self._checkpoints)

    def _settle_inputs(self) -> None:
        """Normalise for each network that brings weights, where its statistics are not those of the data."""
        data = getattr(self.trainer, "datamodule", None)
        for name, fit in (("base", self.base_fit), ("global", self.global_fit)):
            brings = self._pretrained[name] or self._checkpoints[name]
            if not (brings and isinstance(self._named[name], str) and self.data_config):
                continue
            wanted = data_config(self._network(name), self.in_chans or 3)
            has = {key: tuple(getattr(data, key, None) or self.data_config[key]) for key in ("mean", "std")}
            fit.renormalize(has["mean"], has["std"], tuple(wanted["mean"]), tuple(wanted["std"]))

    def configure_optimizers(self) -> Optimizer:
        """Build one optimiser with a group for each of base, global model and router that learns."""
        groups: list[dict[str, Any]] = []
        for name in ("base", "global", "router"):
            parts = [self._network(name), *([self.folds[name]] if name in self.folds else [])]
            parts += [self.joint_guide] if name == "router" and self.joint_guide is not None else []
            learning = [each for part in parts for each in part.parameters() if each.requires_grad]
            if learning:
                groups.append(
                    {"params": learning, "name": name, **(self._router_optimizer if name == "router" else {})}
                )
        if self.idle is not None:
            groups.append({"params": [self.idle], "name": "idle"})
        optimizer = self.optimizer(groups)
        check_group_options(optimizer, self._router_optimizer, "model.router_optimizer")
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    # ------------------------------------------------------------------ what a checkpoint holds

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the router said so far in this epoch, and which samples it learned from, in each process."""
        own = {
            "scores": torch.cat(self._scores) if self._scores else None,
            "training_samples": self.training_samples,
        }
        # the thresholds of averaged weights would be averages, and those from before any is known are no numbers
        checkpoint["state_dict"] |= {name: value.clone() for name, value in self._settled.items()}
        checkpoint[_KEPT] = {"scores_epoch": self._scores_epoch, "per_rank": gather_objects(self.trainer, own)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take those up again; files of first weights have no part any more, nor copies without training."""
        self._keep_weights()
        kept = checkpoint.get(_KEPT, {})
        own = self._share(kept.get("per_rank", []))
        self._scores, self._seen = (
            [each[name] for each in own if each[name] is not None] for name in ("scores", "training_samples")
        )
        self._scores_epoch = kept.get("scores_epoch", -1)
        if not self.folds:
            weights = checkpoint["state_dict"]
            for name in [name for name in weights if name.startswith("folds.")]:
                del weights[name]

    def _share(self, per_rank: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what this process takes up: its own, or of another number of processes the first one all."""
        processes, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        if len(per_rank) == processes:
            return per_rank[rank : rank + 1]
        return per_rank if rank == 0 else []

    @property
    def training_samples(self) -> Tensor | None:
        """Hashes of the inputs that networks and router learned from, int64; ``None`` where they are not known."""
        return torch.cat(self._seen).unique() if self._seen else None


def _repeats(data: Any) -> bool:
    """Tell whether a data module knows its training samples again, and does not change them."""
    return hasattr(data, "train_fingerprint") and not data.augments_training


def _check_joint_options(given: Mapping[str, Any]) -> None:
    kinds = inspect.signature(joint_head_loss).parameters.values()
    allowed = [each.name for each in kinds if each.kind is each.KEYWORD_ONLY and each.name != "target_coverage"]
    for name in given:
        if name not in allowed:
            raise ConfigurationError(
                f"model.joint_kwargs has no option {name!r}; it has {', '.join(allowed)}.{did_you_mean(name, allowed)}"
            )
