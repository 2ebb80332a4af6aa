"""One rank of the two-process test: ``python self_adaptive_worker.py RANK STORE INPUT OUTPUT``."""

from __future__ import annotations

import sys

import torch

from lightning_efficient.losses.self_adaptive import SelfAdaptiveLoss
from lightning_efficient.nn.selective_heads import SelectiveOutputs


def main(rank: int, store: str, source: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name, steps in torch.load(source, weights_only=True).items():
        objective, losses = SelfAdaptiveLoss(), []
        for logits, target, index, cut in steps:
            mine = slice(0, cut) if rank == 0 else slice(cut, None)
            outputs = SelectiveOutputs(logits[mine, :-1], abstain_logit=logits[mine, -1])
            # a sum, so that an empty part adds nothing
            losses.append(objective(outputs, target[mine], index[mine])["loss"] * len(index[mine]))
        found[name] = {"table": objective.doubt.values, "losses": torch.stack(losses)}
    torch.save(found, f"{output}.{rank}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
