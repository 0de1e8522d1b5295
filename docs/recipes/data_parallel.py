"""torchrun --nproc-per-node 2 data_parallel.py"""

import contextlib

import torch
from torch import distributed

import crossent
import crossent.distributed

distributed.init_process_group("gloo")  # "nccl" where each process has a GPU
rank, processes, steps = distributed.get_rank(), distributed.get_world_size(), 2

torch.manual_seed(0)  # the same weights and data in every process
model = torch.nn.Linear(5, 7)
batches = [(torch.randn(rows, 5), torch.randint(7, (rows,))) for rows in (16, 12, 1)]
batches[0][1][:7] = -100  # nearly all labels of the first process
batches[1][1][9:] = -100  # all of the last step of the second one

model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for inputs, labels in batches:
    mine = [tensor.tensor_split(processes)[rank].tensor_split(steps) for tensor in (inputs, labels)]
    count = crossent.distributed.denominator(mine[1])
    for step, (some, targets) in enumerate(zip(*mine), 1):
        with contextlib.nullcontext() if step == steps else model.no_sync():  # gradients are sent once
            crossent.cross_entropy(model(some), targets, denominator=count).backward()
    optimizer.step()
    optimizer.zero_grad()

distributed.destroy_process_group()
