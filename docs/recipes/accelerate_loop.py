"""torchrun --nproc-per-node 2 accelerate_loop.py"""

import torch
from accelerate import Accelerator

import crossent
import crossent.distributed

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
rank, processes = accelerator.process_index, accelerator.num_processes
steps = accelerator.gradient_accumulation_steps

torch.manual_seed(0)  # the same weights and data in every process
model = torch.nn.Linear(5, 7)
batches = [(torch.randn(rows, 5), torch.randint(7, (rows,))) for rows in (16, 12, 1)]
batches[0][1][:7] = -100  # nearly all labels of the first process
batches[1][1][9:] = -100  # all of the last step of the second one

model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
for inputs, labels in batches:
    mine = [tensor.tensor_split(processes)[rank].tensor_split(steps) for tensor in (inputs, labels)]
    count = crossent.distributed.denominator(mine[1], steps=steps)  # by which backward divides the loss
    for some, targets in zip(*mine):
        with accelerator.accumulate(model):
            accelerator.backward(crossent.cross_entropy(model(some), targets, denominator=count))
            optimizer.step()
            optimizer.zero_grad()
