"""One rank of the two-process test: ``python ddp_worker.py RANK STORE INPUT OUTPUT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.metrics import AUGRC, AURC, CoverageAtRisk


def refuses_an_interval(metric: AURC | AUGRC | CoverageAtRisk) -> bool:
    try:
        metric.confidence_interval(resamples=2)
    except ConfigurationError:
        return True
    return False


def main(rank: int, store: str, source: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    data = torch.load(source, weights_only=True)
    results = {}
    for name, (scores, loss, weight, cut) in data.items():
        mine = slice(0, cut) if rank == 0 else slice(cut, None)
        for bins in (None, 1000):
            for metric in (AURC(bins=bins), AUGRC(bins=bins), CoverageAtRisk(0.2, bins=bins)):
                if len(scores[mine]):
                    metric.update_scores(scores[mine], loss[mine], None if weight is None else weight[mine])
                key = f"{name}/{bins}/{type(metric).__name__}"
                results[key] = metric.compute().item()
                results[f"{key}/summary"] = metric.summary().total.item()
                results[f"{key}/dtype"] = str(metric.summary().thresholds.dtype)
                results[f"{key}/refused"] = refuses_an_interval(metric)
    if rank == 1:
        Path(output).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
