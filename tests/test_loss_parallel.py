"""Losses whose classes are spread, beside PyTorch's own `loss_parallel`: where both are right, and where PyTorch's is
wrong or refuses. docs/distributed.md has the same as a table.
"""

import contextlib
import datetime
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from processes import Cases, failures_of
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss,
    loss_parallel,
    parallelize_module,
)

import crossent

CASES = Cases()
DOCS = Path(__file__).parents[1] / "docs/distributed.md"
# What other versions have mended, or not learned yet, is not looked at.
AS_DESCRIBED = torch.__version__.startswith("2.13.")
RIGHT, REFUSES = "right", "refuses"
WRONG_GRADIENT, WRONG_LOSS, WAITS = "wrong gradient", "a loss, no error", "waits for ever"
OVER_CLASSES = [Shard(1)]
GRID = [Shard(0), Shard(1)]  # rows over one axis of a mesh and classes over the other


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labels_of(*shape, classes=10):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


class Setting(NamedTuple):
    """Logits, target and options of a loss, and how the logits are spread."""

    logits: torch.Tensor = random(6, 10)
    target: torch.Tensor = labels_of(6)
    options: dict[str, Any] = {}
    placements: list = OVER_CLASSES
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    soft_is_spread: bool = False


WEIGHTS = torch.linspace(0.5, 2, 10)
SOME_IGNORED = labels_of(6).masked_fill(torch.arange(6) < 2, -100)
CUT_OFF = random(6, 10).masked_fill(torch.arange(10) > 4, -torch.inf)
# By the first cell of its row in the table: what PyTorch's does, and where.
TABLE = {
    "labels, ignored or not; class weights; uneven shards; (N, C), (C), (N, C, L)": (
        RIGHT,
        Setting(),
        Setting(options={"weight": WEIGHTS}),
        Setting(target=SOME_IGNORED),
        Setting(target=torch.full((6,), -100)),
        Setting(options={"ignore_index": 3}),
        Setting(logits=CUT_OFF, target=labels_of(6, classes=5)),
        Setting(logits=random(6, 13), target=labels_of(6, classes=13), options={"weight": torch.linspace(0, 1, 13)}),
        Setting(logits=random(10), target=labels_of(), placements=[Shard(0)]),
        Setting(logits=random(2, 10, 4), target=labels_of(2, 4)),
    ),
    "class weights where some labels are ignored": (REFUSES, Setting(target=SOME_IGNORED, options={"weight": WEIGHTS})),
    'rows and classes spread: "sum", "none"': (RIGHT, Setting(placements=GRID, reductions=("sum", "none"))),
    'rows and classes spread: "mean"': (REFUSES, Setting(placements=GRID, reductions=("mean",))),
    "classes over two axes of the mesh": (REFUSES, Setting(placements=[Shard(1), Shard(1)])),
    "logits whose rows are spread, or that are whole": (
        REFUSES,
        Setting(placements=[Shard(0)]),
        Setting(placements=[Replicate()]),
        Setting(logits=random(2, 10, 4), target=labels_of(2, 4), placements=[Shard(2)]),
    ),
    "label smoothing": (REFUSES, Setting(options={"label_smoothing": 0.1})),
    "soft targets": (REFUSES, Setting(target=random(6, 10).softmax(1))),
    "soft targets that are spread as the logits": (
        WRONG_GRADIENT,
        Setting(target=random(6, 10).softmax(1), soft_is_spread=True),
    ),
    "(N, C, H, W)": (WRONG_GRADIENT, Setting(logits=random(2, 10, 4, 3), target=labels_of(2, 4, 3))),
    "labels of uint8": (REFUSES, Setting(target=labels_of(6).to(torch.uint8))),
}
OTHERS = {
    "a process without classes": WAITS,
    "a label that is no class": WRONG_LOSS,
    "log_softmax": WRONG_GRADIENT,
    "logits of bfloat16": WRONG_GRADIENT,
    "after an error": "stays switched on",
}


@contextlib.contextmanager
def parallel():
    """`loss_parallel`, switched off after an error too, and without the errors that PyTorch logs."""
    logging.disable()
    try:
        with loss_parallel():
            yield
    finally:
        logging.disable(logging.NOTSET)
        with contextlib.suppress(KeyError):
            loss._disable_custom_loss_ops()


def spread(tensor, mesh, placements):
    return distribute_tensor(tensor.clone(), mesh, placements).requires_grad_()


def step(function, logits, target, options):
    """The loss and the gradient of the logits, as whole tensors."""
    found = function(logits, target, **options)
    found.sum().backward()
    both = [one.full_tensor() if isinstance(one, DTensor) else one for one in (found, logits.grad)]
    return [one.detach().double() for one in both]


def exact(logits, target, options):
    """By PyTorch in one process, in float64."""
    options = {name: value.double() if torch.is_tensor(value) else value for name, value in options.items()}
    target = target.double() if target.is_floating_point() else target.long()
    return step(F.cross_entropy, logits.double().requires_grad_(), target, options)


def compared(found, expected):
    near = [torch.allclose(*pair, rtol=1e-5, atol=1e-6, equal_nan=True) for pair in zip(found, expected)]
    return RIGHT if all(near) else WRONG_GRADIENT if near[0] else "wrong loss"


def of_theirs(logits, target, options, expected):
    try:
        with parallel():
            found = step(F.cross_entropy, logits, target, options)
    except (RuntimeError, ValueError, NotImplementedError):
        return REFUSES
    return compared(found, expected)


def target_of(setting, mesh):
    """As PyTorch wants it: spread, where the rows are."""
    if setting.soft_is_spread:
        return distribute_tensor(setting.target, mesh, setting.placements)
    if setting.placements is GRID:
        return distribute_tensor(setting.target, mesh, [Shard(0), Replicate()])
    return setting.target


def grid_of(mesh):
    return init_device_mesh("cpu", (2, mesh.size() // 2))


@CASES.add
def rows_of_the_table(mesh):
    grid, failed = grid_of(mesh), []
    for name, (outcome, *settings) in TABLE.items():
        for setting in settings:
            over = mesh if len(setting.placements) == 1 else grid
            for reduction in setting.reductions:
                options = setting.options | {"reduction": reduction}
                expected = exact(setting.logits, setting.target, options)
                given = target_of(setting, over)
                ours = spread(setting.logits, over, setting.placements), given, options
                assert compared(step(crossent.cross_entropy, *ours), expected) == RIGHT, (name, options)
                logits = spread(setting.logits, over, setting.placements)
                if AS_DESCRIBED and (theirs := of_theirs(logits, given, options, expected)) != outcome:
                    failed.append((name, options, theirs))
    assert not failed, failed


@CASES.add
def collectives(mesh):
    """Three of theirs, one of ours; neither sends anything in the backward pass."""
    for function, sent in ((crossent.cross_entropy, 1), (F.cross_entropy, 3)):
        logits = spread(random(6, 10), mesh, OVER_CLASSES)
        with parallel():
            with CommDebugMode() as forward:
                value = function(logits, labels_of(6))
            with CommDebugMode() as backward:
                value.backward()
        assert forward.get_total_counts() == sent or (function is F.cross_entropy and not AS_DESCRIBED)
        assert backward.get_total_counts() == 0 or not AS_DESCRIBED


@CASES.add
def a_label_that_is_no_class(mesh):
    for bad in (10, -1):
        labels = labels_of(6).index_fill(0, torch.tensor([2]), bad)
        with pytest.raises(IndexError, match=f"Target {bad} at position 2 is out of bounds"):
            crossent.cross_entropy(spread(random(6, 10), mesh, OVER_CLASSES), labels)
        if AS_DESCRIBED:
            with parallel():
                assert F.cross_entropy(spread(random(6, 10), mesh, OVER_CLASSES), labels).full_tensor().isfinite()


@CASES.add
def log_softmax(mesh):
    x = random(6, 10)
    expected = step(F.log_softmax, x.double().requires_grad_(), 1, {})

    def of_squares(function):
        logits = spread(x, mesh, OVER_CLASSES)
        (function(logits, 1).full_tensor() ** 2).sum().backward()
        return logits.grad.full_tensor().double()

    leaf = x.double().requires_grad_()
    (F.log_softmax(leaf, 1) ** 2).sum().backward()
    torch.testing.assert_close(of_squares(crossent.log_softmax), leaf.grad, rtol=1e-5, atol=1e-5)
    with parallel():
        theirs = F.log_softmax(spread(x, mesh, OVER_CLASSES), 1).full_tensor().double()
        torch.testing.assert_close(theirs, expected[0], rtol=1e-5, atol=1e-5)
        if AS_DESCRIBED:
            wrong = of_squares(F.log_softmax)
            torch.testing.assert_close(wrong, 2 * expected[0], rtol=1e-5, atol=1e-5)  # as if it were the identity


@CASES.add
def logits_of_bfloat16(mesh):
    """PyTorch's gradient is made of log-probabilities that were rounded to 16 bits."""
    x, labels, errors = (4 * random(64, 50)).bfloat16(), labels_of(64), {}
    options = {"reduction": "sum"}
    _, expected = exact(x, labels, options)
    for function in (crossent.cross_entropy, F.cross_entropy):
        with parallel():
            _, found = step(function, spread(x, mesh, OVER_CLASSES), labels, options)
        errors[function] = ((found - expected).abs() / expected.abs().clamp(1e-3)).max().item()
    assert errors[crossent.cross_entropy] < 2**-8
    assert errors[F.cross_entropy] > 2 * 2**-8 or not AS_DESCRIBED


@CASES.add
def after_an_error(mesh):
    """What is switched on stays on, so that losses outside go on as if they were inside."""
    if not AS_DESCRIBED:
        return
    logits = spread(random(6, 10), mesh, OVER_CLASSES)
    with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor"):
        F.cross_entropy(logits, labels_of(6))  # outside
    with contextlib.suppress(ZeroDivisionError), loss_parallel():
        raise ZeroDivisionError
    try:
        assert F.cross_entropy(logits, labels_of(6)).isfinite()
    finally:
        loss._disable_custom_loss_ops()


class Block(nn.Module):
    def __init__(self, features, heads):
        super().__init__()
        self.heads, self.norm, self.ffn_norm = heads, nn.LayerNorm(features), nn.LayerNorm(features)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(features, features, bias=False) for _ in range(4))
        self.w1, self.w2 = nn.Linear(features, 2 * features), nn.Linear(2 * features, features)
        self.attention, self.feed_forward = nn.Identity(), nn.Identity()  # where rows are brought together

    def forward(self, x):
        h = self.attention(self.norm(x))
        q, k, v = (of(h).unflatten(-1, (-1, self.heads)).transpose(1, 2) for of in (self.wq, self.wk, self.wv))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.wo(mixed)
        return x + self.w2(F.gelu(self.w1(self.feed_forward(self.ffn_norm(x)))))


class LanguageModel(nn.Module):
    def __init__(self, classes=30, features=16, blocks=2):
        super().__init__()
        self.embeddings = nn.Embedding(classes, features)
        self.blocks = nn.ModuleList(Block(features, 4) for _ in range(blocks))
        self.norm, self.lm_head = nn.LayerNorm(features), nn.Linear(features, classes, bias=False)

    def hidden(self, tokens):
        x = self.embeddings(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens):
        return self.lm_head(self.hidden(tokens))


def tensor_parallel(model, mesh):
    """Tensor and sequence parallel, the logits left spread along their classes."""
    together = {"input_layouts": Shard(1), "desired_input_layouts": Replicate()}
    spread_rows = {"output_layouts": Shard(1)}
    plan = {
        "embeddings": RowwiseParallel(input_layouts=Replicate(), **spread_rows),
        "norm": SequenceParallel(),
        "lm_head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    for block in model.blocks:
        plan = {"norm": SequenceParallel(), "ffn_norm": SequenceParallel()}
        plan |= {name: PrepareModuleInput(**together) for name in ("attention", "feed_forward")}
        plan |= {name: ColwiseParallel() for name in ("wq", "wk", "wv", "w1")}
        plan |= {name: RowwiseParallel(**spread_rows) for name in ("wo", "w2")}
        parallelize_module(block, mesh, plan)
    return model


def gradients_of(model, value):
    value.backward()
    grads = {name: one.grad for name, one in model.named_parameters()}
    return {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in grads.items()}


@CASES.add
def a_language_model(mesh):
    """As large trainers have it: the head's logits stay spread, and the loss is that of all tokens."""

    def model():
        torch.manual_seed(0)
        return LanguageModel()

    tokens = labels_of(2, 9, classes=30)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    alone = model().double()
    expected = F.cross_entropy(alone(inputs).flatten(0, 1), labels.flatten())
    expected_grads = gradients_of(alone, expected)

    def check(found, gradients):
        torch.testing.assert_close(found.full_tensor().double(), expected.detach(), rtol=1e-5, atol=1e-5)
        for name, gradient in expected_grads.items():
            torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-4, atol=1e-5, msg=name)

    for function in (crossent.cross_entropy, F.cross_entropy):
        net = tensor_parallel(model(), mesh)
        logits = net(inputs)
        assert list(logits.placements) == [Shard(2)] and list(net.lm_head.weight.placements) == [Shard(0)]
        with parallel() if function is F.cross_entropy else contextlib.nullcontext():
            found = function(logits.flatten(0, 1).float(), labels.flatten())
            check(found.detach(), gradients_of(net, found))
    net = tensor_parallel(model(), mesh)
    found = crossent.linear_cross_entropy(net.hidden(inputs), net.lm_head.weight, labels)
    check(found.detach(), gradients_of(net, found))


@CASES.add
def a_process_without_classes(mesh):
    """Last, since PyTorch's processes leave their group in disorder."""
    x, labels = random(6, 3), labels_of(6, classes=3)
    found = step(crossent.cross_entropy, spread(x, mesh, OVER_CLASSES), labels, {})
    assert compared(found, exact(x, labels, {})) == RIGHT
    if AS_DESCRIBED:
        group = distributed.new_group(timeout=datetime.timedelta(seconds=4))
        logits = distribute_tensor(x, DeviceMesh.from_group(group, "cpu"), OVER_CLASSES, src_data_rank=None)
        said = "out of bounds" if mesh.get_rank() == 3 else "[Tt]imed out|[Cc]losed|reset"
        with pytest.raises((IndexError, RuntimeError), match=said), parallel():
            F.cross_entropy(logits, labels)


@pytest.fixture(scope="module")
def failures():
    return failures_of(__name__, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_four_processes(name, failures):
    assert name not in failures, failures.get(name)


def test_the_table_of_the_docs_says_the_same():
    text = DOCS.read_text(encoding="utf-8").partition("## Beside PyTorch's loss_parallel")[2].replace("`", "")
    _, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    found = {name: outcome.partition(":")[0] for name, outcome, _ in rows}
    assert found == {name: outcome for name, (outcome, *_) in TABLE.items()} | OTHERS
