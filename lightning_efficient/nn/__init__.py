"""Networks and layers: recurrent cells, small networks, efficient blocks, and what distillation adds to a student."""

from __future__ import annotations

from lightning_efficient.nn.cifar_networks import CIFAR_NETWORKS, register_cifar_networks
from lightning_efficient.nn.cifar_resnet import CIFAR_RESNETS, register_cifar_resnets
from lightning_efficient.nn.depthwise_layer import DepthwiseLayer
from lightning_efficient.nn.early_exits import EarlyExitNetwork
from lightning_efficient.nn.experts import ExpertsNetwork, ExpertsRouter
from lightning_efficient.nn.global_layer import GlobalLayer
from lightning_efficient.nn.guides import (
    BothMapsGuide,
    ConstantGuide,
    FeaturesGuide,
    Guide,
    LogitsGuide,
    MapGuide,
    StudentMapGuide,
    build_guide,
)
from lightning_efficient.nn.hybrid_graphs import EdgeGraph, GlobalGraph
from lightning_efficient.nn.incremental_rnn import IncrementalRNN
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.model_cascade import ModelCascade
from lightning_efficient.nn.recalibration import recalibrate_batch_norm
from lightning_efficient.nn.released_routers import PaperRouter, ReleasedHeadRouter
from lightning_efficient.nn.routers import GainRouter, ProxyRouter, Router, ScoreRouter, build_router
from lightning_efficient.nn.selective_heads import SelectiveHeads, SelectiveOutputs
from lightning_efficient.nn.spatial_interpolation import InterpolatedChain, SpatialInterpolation
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.time_adaptive_rnn import TimeAdaptiveRNN
from lightning_efficient.nn.views import ModelViews, ViewTap

__all__ = [
    "CIFAR_NETWORKS",
    "CIFAR_RESNETS",
    "BothMapsGuide",
    "ConstantGuide",
    "DepthwiseLayer",
    "EarlyExitNetwork",
    "EdgeGraph",
    "ExpertsNetwork",
    "ExpertsRouter",
    "FeaturesGuide",
    "GainRouter",
    "GlobalGraph",
    "GlobalLayer",
    "Guide",
    "IncrementalRNN",
    "InputFit",
    "InterpolatedChain",
    "LogitsGuide",
    "MapGuide",
    "ModelCascade",
    "ModelViews",
    "PaperRouter",
    "ProxyRouter",
    "ReleasedHeadRouter",
    "Router",
    "ScoreRouter",
    "SelectiveHeads",
    "SelectiveOutputs",
    "SpatialInterpolation",
    "StudentMapGuide",
    "Teacher",
    "TimeAdaptiveRNN",
    "ViewTap",
    "build_guide",
    "build_router",
    "recalibrate_batch_norm",
    "register_cifar_networks",
    "register_cifar_resnets",
]
