"""The loss's share of a training step, with PyTorch's and with crossent's: `python -m benchmarks.share`.

Models of the transformers library as their papers have them, in float32, untrained, on random numbers. A step is the
model forward and backward with its loss, and AdamW's. What the loss takes of it is measured alone, on what the model
gives it; of a language model that is head and loss together. All have their turn in each round, and a result is the
median over the rounds. With --cpu it is the time of one thread that has a processor, which says more where others are
at work.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import crossent
from benchmarks.report import Sheet
from crossent.tools.bench.calls import of_arrays
from crossent.tools.bench.machine import in_words, measured_on
from crossent.tools.bench.report import in_time
from crossent.tools.bench.timing import compared
from crossent.tools.demo.transformer import HEADS

LOSSES = {"torch": F.cross_entropy, "crossent": crossent.cross_entropy}
HEADING = "model", "its loss", "PyTorch: a step", "share of the loss", "crossent: a step", "share", "step faster"


@dataclass(frozen=True)
class Training:
    """`given` makes what the loss differentiates, `target` is what it takes beside that."""

    name: str
    size: str
    model: torch.nn.Module
    given: Callable[[], tuple[torch.Tensor, ...]]
    target: torch.Tensor
    losses: dict[str, Callable]


def resnet() -> Training:
    from transformers import ResNetConfig, ResNetForImageClassification

    model, images = ResNetForImageClassification(ResNetConfig(num_labels=1000)), torch.randn(8, 3, 224, 224)
    labels = torch.randint(1000, (8,))
    return Training("ResNet-50", "8 x 1000", model, lambda: (model(images).logits,), labels, LOSSES)


def segformer() -> Training:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model, images = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150)), torch.randn(1, 3, 512, 512)
    labels = torch.randint(150, (1, 512, 512))

    def given() -> tuple[torch.Tensor]:
        return (F.interpolate(model(images).logits, size=(512, 512), mode="bilinear"),)

    return Training("SegFormer-B0", "1 x 150 x 512 x 512", model, given, labels, LOSSES)


def gpt2() -> Training:
    from transformers import GPT2Config, GPT2Model

    model, tokens = GPT2Model(GPT2Config()), torch.randint(50257, (2, 512))
    return Training(
        "GPT-2", "1024 x 768 x 50257", model, lambda: (model(tokens).last_hidden_state, model.wte.weight), tokens, HEADS
    )


MODELS = {"resnet": resnet, "segformer": segformer, "gpt2": gpt2}


def row(training: Training, rounds: int, now: Callable[[], float]) -> tuple[str, ...]:
    optimizer = torch.optim.AdamW(training.model.parameters(), fused=True)

    def step(loss: Callable) -> None:
        optimizer.zero_grad()
        loss(*training.given(), training.target).backward()
        optimizer.step()

    leaves = [tensor.detach().requires_grad_() for tensor in training.given()]
    calls = {f"{name} step": lambda loss=loss: step(loss) for name, loss in training.losses.items()}
    calls |= {name: of_arrays(loss, "step", (*leaves, training.target)) for name, loss in training.losses.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = now()
            call()
            if turn:  # the first loads and compiles
                samples[name].append(now() - start)
    cells = []
    for name in training.losses:
        found = compared(samples[f"{name} step"], samples[name])
        cells += [in_time(found["ours"]), f"{found['ratio']:.2%}"]
    gain = compared(samples["crossent step"], samples["torch step"])["ratio"]
    return training.name, training.size, *cells, f"{gain:.2f} x"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.share", description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cpu", action="store_true", help="the time of a processor, on one thread")
    parser.add_argument("--model", choices=MODELS, action="append", help="all by default")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    if chosen.cpu:
        torch.set_num_threads(1)
    clock = time.thread_time if chosen.cpu else time.perf_counter
    command = shlex.join(["python", "-m", "benchmarks.share", *sys.argv[1:]])
    measured = measured_on(("torch", "transformers"))
    measured["machine"]["threads"] = torch.get_num_threads()
    print(f"`{command}`, {measured['date']}.\n{in_words(measured)}\n", flush=True)
    rows = [row(MODELS[name](), chosen.rounds, clock) for name in chosen.model or MODELS]
    print(Sheet("", HEADING, rows, 2).markdown())


if __name__ == "__main__":
    main()
