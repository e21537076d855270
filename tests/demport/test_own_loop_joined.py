"""Two processes joined by DistributedDataParallel: the same channels leave in both, and each wraps its network anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import REPOSITORY

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import demport

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1),
    nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
)
optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
torch.manual_seed(rank)
x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 4  # other images in each process
sparse = demport.sparsify(network, optimizer, (x[:2],), steps=30, target={"macs": 0.5})
joined, wrapped = DistributedDataParallel(sparse.network), 1
for _ in range(30):
    loss = nn.functional.cross_entropy(joined(x), y) + sparse.penalty()
    sparse.optimizer.zero_grad()
    loss.backward()
    sparse.optimizer.step()
    if sparse.step(x):
        joined, wrapped = DistributedDataParallel(sparse.network), wrapped + 1
torch.save({"wrapped": wrapped, "parameters": dict(sparse.network.named_parameters())}, f"{folder}/{rank}.pt")
sparse.finish()
dist.barrier()
dist.destroy_process_group()
"""


def test_both_processes_end_with_the_same_smaller_network(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(rank), str(tmp_path)],
            cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one["wrapped"] == other["wrapped"] > 3
    assert one["parameters"].keys() == other["parameters"].keys()
    assert all(torch.equal(p, other["parameters"][name]) for name, p in one["parameters"].items())
    assert len(one["parameters"]["0.weight"]) + len(one["parameters"]["3.weight"]) < 20
