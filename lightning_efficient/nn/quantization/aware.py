"""Quantisation-aware training: a network whose weights and activations are rounded while it learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lightning_efficient._graph_problems import quiet
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_flag
from lightning_efficient.nn.quantization._graph import (
    check_example,
    converted,
    copied,
    difference,
    layers_of,
    quantizer,
    random_operators,
    traced,
)
from lightning_efficient.nn.quantization._norms import fold_norms, to_evaluation
from lightning_efficient.nn.quantization._problems import graph_problem, require_torchao
from lightning_efficient.nn.quantization.result import Quantized
from lightning_efficient.rng import rng_untouched


class AwareNetwork(nn.Module):
    """A network with fake quantisation; made by :func:`prepare_aware`.

    Parameters and buffers have the names and values of the network's; the ranges are further buffers. ``train()`` and
    ``eval()`` switch batch normalisation and dropout. Ranges are learned in training mode only, so validation data
    never enter them. Until a range was learned its tensor is not rounded. Computes in float32, also under autocast.

    Args:
        prepared: What torchao made of the traced network.
        quantized: Names of the layers that are quantised.
        skipped: Names of the others, with the reason.
        shape: Of one sample.
        dtype: Of the samples.
    """

    def __init__(
        self,
        prepared: GraphModule,
        quantized: tuple[str, ...],
        skipped: dict[str, str],
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        # not the named_ methods, which leave out the second name of an observer or a tied weight
        for name, child in prepared._modules.items():
            self.add_module(name, child)
        for name, parameter in prepared._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in prepared._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in prepared._non_persistent_buffers_set)
        self.quantized, self.skipped = quantized, skipped
        self._shape, self._dtype = shape, dtype
        self._prepared_graph: Graph = prepared.graph
        self._prepared_meta: dict[str, Any] = dict(prepared.meta)
        self._fake_quantization = self._observers = True
        codegen = prepared.graph._codegen
        self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        self._forwards = {training: _forward_of(prepared, training) for training in (True, False)}
        self.train()

    def forward(self, inputs: Tensor) -> Any:
        """Return what the network answers for a batch ``(N, ...)``, rounded on the way."""
        inputs = inputs.float() if inputs.is_floating_point() else inputs
        with torch.autocast(inputs.device.type, enabled=False):
            return self._forwards[self.training](self, inputs)

    def train(self, mode: bool = True) -> AwareNetwork:
        """Switch batch normalisation, dropout and the learning of ranges."""
        super().train(mode)
        self._switch()
        return self

    def _switch(self) -> None:
        for each in self._roundings():
            learns = self.training and self._observers
            known = each.activation_post_process.min_val
            learned = known.numel() > 0 and bool(known.isfinite().all())
            each.enable_observer(learns)
            each.enable_fake_quant(self._fake_quantization and (learns or learned))

    def _roundings(self) -> list[Any]:
        from torchao.quantization.pt2e import FakeQuantizeBase

        return [each for each in self.modules() if isinstance(each, FakeQuantizeBase)]


def prepare_aware(network: nn.Module, example: Tensor, *, reduce_range: bool = False) -> AwareNetwork:
    """Return a copy of a network that rounds to 8 bits in its forward pass, to be trained in its place.

    Weights are rounded per output channel with the batch normalisation that follows folded in, activations per tensor;
    gradients pass straight through the rounding. Ranges of activations are moving averages.

    Args:
        network: Any module that ``torch.export`` can trace, from a tensor; it stays as it is.
        example: A batch ``(N, ...)``, on any device.
        reduce_range: Use 7 bits for activations, against saturation on CPUs without VNNI.

    Returns:
        In training mode, on the network's device.

    Raises:
        ConfigurationError: the network cannot be traced, has no layer to quantise, draws random numbers other than by
            dropout (stochastic depth), or does something else in training than in evaluation.
        MissingExtraError: torchao is not installed.

    Reference:
        Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko. Quantization and Training of Neural Networks for
        Efficient Integer-Arithmetic-Only Inference. CVPR 2018.
    """
    require_torchao()
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), rng_untouched():
        tensor = next(network.parameters(), None)
        device = torch.device("cpu") if tensor is None else tensor.device
        module = copied(network, device)
        example = check_example(example).detach().to(device)
        example = example.float() if example.is_floating_point() else example
        with torch.no_grad():
            expected = module.eval()(example)
        graph = traced(module.train(), example)
        for node in random_operators(graph.graph):
            raise ConfigurationError(
                f"the network draws random numbers in training ({node.target}), which the traced graph would do in "
                "evaluation too; set drop_path_rate (stochastic depth) and attention dropout to 0."
            )
        try:
            with quiet():
                from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

                prepared = prepare_qat_pt2e(graph, quantizer(aware=True, reduce_range=reduce_range))
        except Exception as error:
            raise graph_problem("torchao", error) from error
        quantized, skipped = layers_of(prepared)
        aware = AwareNetwork(prepared, quantized, skipped, tuple(example.shape[1:]), example.dtype)
        with torch.no_grad():
            apart = difference(aware.eval()(example), expected)
    if not apart <= 1e-3:
        raise ConfigurationError(
            f"the traced network answers differently in evaluation, by {apart:.3g}: its forward does more in training "
            "than BatchNorm and Dropout do."
        )
    return aware.train()


def convert_aware(prepared: nn.Module) -> Quantized:
    """Turn a trained :func:`prepare_aware` network into integers.

    As with ``quantize_static``, rounding is simulated and slow until the module is compiled.

    Args:
        prepared: Stays as it is.

    Raises:
        ConfigurationError: it is no such network, or it has not been trained for a single batch.
    """
    aware = _checked(prepared)
    unknown = [each for each in aware._roundings() if not _is_learned(each)]
    if unknown:
        raise ConfigurationError("prepared: no ranges were learned; train for at least one batch before conversion.")
    with torch.no_grad(), rng_untouched():
        copy_ = copy.deepcopy(aware).cpu()
        module = GraphModule(copy_, copy_._prepared_graph)
        module.meta.update(copy_._prepared_meta)
        to_evaluation(module.graph)
        fold_norms(module)
        module = converted(module)
    return Quantized(module, "aware", aware.quantized, aware.skipped, aware._shape, aware._dtype)


def set_fake_quantization(prepared: nn.Module, on: bool) -> None:
    """Round weights and activations, or compute in floating point."""
    check_flag("on", on)
    aware = _checked(prepared)
    aware._fake_quantization = on
    aware._switch()


def set_observers(prepared: nn.Module, on: bool) -> None:
    """Let ranges follow the training data, or hold them."""
    check_flag("on", on)
    aware = _checked(prepared)
    aware._observers = on
    aware._switch()


def _checked(prepared: nn.Module) -> AwareNetwork:
    if not isinstance(prepared, AwareNetwork):
        raise ConfigurationError(f"prepared is a {type(prepared).__name__}; give what prepare_aware returned.")
    return prepared


def _is_learned(rounding: Any) -> bool:
    known = rounding.activation_post_process.min_val
    return known.numel() > 0 and bool(known.isfinite().all())


def _forward_of(prepared: GraphModule, training: bool) -> Any:
    """Return the code of a graph as a function of the module that holds its tensors, and of the inputs."""
    graph = copy.deepcopy(prepared.graph)
    if not training:
        to_evaluation(graph)
    return type(GraphModule(prepared, graph)).forward
