"""What a hybrid costs where it is deployed: latency, operations, energy and money as functions of the query rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count, check_fraction, check_number


@dataclass(frozen=True)
class DeploymentCost:
    """Terms of a deployment, each of which has to be measured there, and what they add up to.

    Every input pays the base model and the router; those asked about pay the link and the global model besides. The
    latency of one input takes one of two values, so means hide it: look at ``slow_latency_s`` with ``query_rate``, and
    put in the terms at p95 to get the tail. Nothing here measures; terms left out are zero.

    Args:
        base_s: Latency of the base model, seconds.
        router_s: Latency of the router and the decision, seconds.
        encode_s: Latency of encoding one input for the link, seconds.
        round_trip_s: Round trip of the link without payload, seconds.
        bytes_up: Payload of one input, bytes.
        bytes_down: Payload of one answer, bytes.
        up_bytes_per_s: Rate of the link upward, bytes per second; infinite by default.
        down_bytes_per_s: Rate of the link downward, bytes per second; infinite by default.
        queue_s: Time in the server's queue, seconds.
        global_s: Latency of the global model in a batch of its usual size, seconds.
        base_macs: Multiply-accumulates of the base model for one input.
        router_macs: Likewise of the router.
        global_macs: Likewise of the global model.
        active_w: Power of the edge device while it computes, watts.
        wait_w: Power while it waits for an answer, watts.
        j_per_byte: Energy to send one byte, joules.
        price: Money for one query, in any currency.

    Raises:
        ConfigurationError: a term below 0 or no number, or a rate of 0.

    Example:
        >>> cost = DeploymentCost(
        ...     base_s=0.2, round_trip_s=0.05, bytes_up=150_528, up_bytes_per_s=100_000, global_s=0.03,
        ...     base_macs=12_000_000, global_macs=600_000_000, active_w=0.1, price=0.001,
        ... )
        >>> f"{cost.cloud_s:.3f} s, {cost.latency_s(0.3):.3f} s, {cost.latency_s(1.0):.3f} s"
        '1.585 s, 0.676 s, 1.785 s'
        >>> f"{cost.break_even_coverage:.3f} {cost.macs(0.3):.3g} {cost.energy_j(0.3):.3g} {cost.money(0.3):.2g}"
        '0.126 1.92e+08 0.02 0.0003'
        >>> f"{DeploymentCost.any_query(0.1, batch_size=8):.3f}"
        '0.570'
    """

    base_s: float
    router_s: float = 0.0
    encode_s: float = 0.0
    round_trip_s: float = 0.0
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    up_bytes_per_s: float = math.inf
    down_bytes_per_s: float = math.inf
    queue_s: float = 0.0
    global_s: float = 0.0
    base_macs: float = 0.0
    router_macs: float = 0.0
    global_macs: float = 0.0
    active_w: float = 0.0
    wait_w: float = 0.0
    j_per_byte: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check_number(field.name, value)
            is_rate = field.name.endswith("_bytes_per_s")
            if not value >= 0 or (value == 0 and is_rate) or (math.isinf(value) and not is_rate):
                allowed = "above 0" if is_rate else "finite and at least 0"
                raise ConfigurationError(f"{field.name}={value!r} must be {allowed}.")

    @property
    def edge_s(self) -> float:
        """Latency that every input pays: base and router, seconds."""
        return self.base_s + self.router_s

    @property
    def waiting_s(self) -> float:
        """What a query waits for after it was encoded: the link, the queue and the global model, seconds."""
        link = self.round_trip_s + self.bytes_up / self.up_bytes_per_s + self.bytes_down / self.down_bytes_per_s
        return link + self.queue_s + self.global_s

    @property
    def cloud_s(self) -> float:
        """Latency of a query alone, as of a system without a base model, seconds."""
        return self.encode_s + self.waiting_s

    @property
    def slow_latency_s(self) -> float:
        """Latency of an input that is asked about, seconds; all others take ``edge_s``."""
        return self.edge_s + self.cloud_s

    def latency_s(self, query_rate: float) -> float:
        """Mean latency of an input, seconds."""
        check_fraction("query_rate", query_rate, zero=True)
        return self.edge_s + query_rate * self.cloud_s

    @property
    def break_even_coverage(self) -> float:
        """Share of inputs that the base has to keep for the mean latency not to exceed that of the cloud alone.

        Above 1 where no coverage achieves it, as the base is slower than a query; infinite where a query takes no time.
        """
        return self.edge_s / self.cloud_s if self.cloud_s > 0 else math.inf

    def macs(self, query_rate: float) -> float:
        """Mean multiply-accumulates of an input, edge and cloud together."""
        check_fraction("query_rate", query_rate, zero=True)
        return self.base_macs + self.router_macs + query_rate * self.global_macs

    def energy_j(self, query_rate: float) -> float:
        """Mean energy of the edge device for an input, joules; encoding counts as computing."""
        check_fraction("query_rate", query_rate, zero=True)
        query = self.active_w * self.encode_s + self.j_per_byte * (self.bytes_up + self.bytes_down)
        return self.active_w * self.edge_s + query_rate * (query + self.wait_w * self.waiting_s)

    def money(self, query_rate: float) -> float:
        """Mean price of an input."""
        check_fraction("query_rate", query_rate, zero=True)
        return query_rate * self.price

    @staticmethod
    def any_query(query_rate: float, batch_size: int) -> float:
        """Probability that a batch of independent inputs makes a call at all."""
        check_fraction("query_rate", query_rate, zero=True)
        check_count("batch_size", batch_size)
        # for small rates more exact than 1 - (1 - q)^n
        return 1.0 if query_rate == 1 else -math.expm1(batch_size * math.log1p(-query_rate))

    @staticmethod
    def accuracy(hybrid: float, base: float, unreachable: float) -> float:
        """Expected accuracy where a share of the time the global model cannot be reached and the base answers alone.

        Args:
            hybrid: Accuracy of the hybrid while it can be reached, in ``[0, 1]``.
            base: Accuracy of the base model.
            unreachable: Share of the time, independent of the inputs.

        Example:
            >>> DeploymentCost.accuracy(hybrid=0.75, base=0.5, unreachable=0.5)
            0.625
        """
        for name, value in (("hybrid", hybrid), ("base", base), ("unreachable", unreachable)):
            check_fraction(name, value, zero=True)
        return (1 - unreachable) * hybrid + unreachable * base
