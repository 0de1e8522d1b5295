"""torchrun --nproc-per-node 2 fully_sharded.py"""

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

import crossent.distributed
import crossent.nn


class LanguageModel(torch.nn.Module):
    def __init__(self, vocabulary, features):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, features)
        layers = (torch.nn.Sequential(torch.nn.Linear(features, features), torch.nn.Tanh()) for _ in range(2))
        self.layers = torch.nn.Sequential(*layers)
        self.head = crossent.nn.LinearCrossEntropyLoss(features, vocabulary, shift=1, loss_dtype="float32")

    def forward(self, tokens, labels, count):
        return self.head(self.layers(self.embedding(tokens)), labels, denominator=count)


distributed.init_process_group("gloo")  # "nccl" where each process has a GPU
rank, processes, steps = distributed.get_rank(), distributed.get_world_size(), 2
mesh = distributed.device_mesh.init_device_mesh("cpu", (processes,))  # "cuda"

torch.manual_seed(0)  # the same weights and data in every process
model = LanguageModel(11, 8)
batches = [torch.randint(11, (rows, 6)) for rows in (8, 8, 1)]
labels = [tokens.clone() for tokens in batches]
labels[0][:4, 2:] = -100  # the first process learns from few
labels[1][6:] = -100  # the last step of the second one from none

for layer in model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model.head, mesh=mesh, reshard_after_forward=False)  # its weight is needed again at once, or not at all
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for whole in zip(batches, labels):
    mine = [tensor.tensor_split(processes)[rank].tensor_split(steps) for tensor in whole]
    count = crossent.distributed.denominator([targets[:, 1:] for targets in mine[1]]).item()
    for step, (tokens, targets) in enumerate(zip(*mine), 1):
        model.set_requires_gradient_sync(step == steps)  # gradients are sent once
        model(tokens, targets, count).backward()
    optimizer.step()
    optimizer.zero_grad()

distributed.destroy_process_group()
