"""The GPU's kernels of a cross entropy, which Triton's interpreter runs on the CPU."""

import contextlib
import gc
import weakref
from functools import partial
from itertools import permutations, product

import pytest
import torch
from harness import Chunks, check, new_plans, on_triton, on_triton_at_once, triton_kernels
from test_contract import LAYOUTS, OPTION_SHAPES, OPTIONS, SHAPES, identify, make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import crossent
from crossent._options import loss_options
from crossent.frontends.torch import compiled, gpus, staged
from crossent.frontends.torch.arrays import TORCH, UNREAD
from crossent.frontends.torch.router import divisor_of

pytest.importorskip("triton")

WAYS = ["triton", "triton at once"]


def check_options(way, dtype, options, shapes):
    for shape, dim in shapes:
        logits, target, keywords = make(shape, dim, **OPTIONS[options])
        check(way, "cross_entropy", logits, target, dtype=dtype, **keywords)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(way, options):
    check_options(way, "float32", options, OPTION_SHAPES[1:2] + OPTION_SHAPES[3:4])


@pytest.mark.parametrize("options", ["smoothing, class weights", "everything none", "soft, everything"])
def test_options_in_float64(options):
    check_options("triton", "float64", options, OPTION_SHAPES)


@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_shapes(shape):
    logits, target, options = make(*shape, ignored=True)
    check("triton", "cross_entropy", logits, target, dtype="float32", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    for shape in [((33, 10), None), ((2, 19, 4, 6), None), ((2, 7, 3, 11), -2)]:
        logits, target, options = make(*shape, ignored=True)
        check("triton", "cross_entropy", logits, target, dtype="float32", layout=layout, **options)


@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
def test_all_options(way, dtype, options):
    check_options(way, dtype, options, OPTION_SHAPES)


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_all_shapes_and_layouts(shape):
    for way in WAYS:
        for layout in LAYOUTS:
            logits, target, options = make(*shape, ignored=True)
            check(way, "cross_entropy", logits, target, dtype="float32", layout=layout, **options)


def logits(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options).requires_grad_()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """As if the host had to wait for what is in a tensor."""
    from crossent.frontends.torch import late

    monkeypatch.setattr(late, "is_late", lambda tensor: True)
    monkeypatch.setattr(late, "_late", late._Late())
    return late


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
@pytest.mark.parametrize("shape", [(4, 9), (2, 9, 3), (3, 70000)])
def test_bad_labels_are_told_later(way, shape, as_on_a_gpu):
    """The loss is nan, the row's gradient 0, that of the others what it is without the row; then the error comes."""
    x = logits(*shape)
    y = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    y.view(-1)[1] = shape[1]
    with way():
        loss = crossent.cross_entropy(x, y)
        assert loss.isnan()
        with pytest.raises(IndexError, match=rf"Target {shape[1]} at position (\(0, )?1\)? is out"):
            loss.backward()
        loss.backward()  # it was told once
        gradient = x.grad.clone()
        x.grad = None
        y.view(-1)[1] = -100
        crossent.cross_entropy(x, y).backward()
    assert torch.equal(gradient, x.grad) and x.grad.count_nonzero()


def test_the_next_call_tells(as_on_a_gpu, monkeypatch):
    x, y = logits(4, 9), torch.tensor([0, 8, -1, 2])
    with on_triton():
        crossent.cross_entropy(x, y)
        with pytest.raises(IndexError, match=r"Target -1 at position 2 is"):
            crossent.cross_entropy(x, y.clamp(min=0))
        monkeypatch.setenv("CROSSENT_CHECK_LABELS", "now")
        with pytest.raises(IndexError):
            crossent.cross_entropy(x, y)
        monkeypatch.setenv("CROSSENT_CHECK_LABELS", "later")
        assert crossent.cross_entropy(x.detach(), y).isnan()
        monkeypatch.delenv("CROSSENT_CHECK_LABELS")
        with pytest.raises(IndexError):
            crossent.cross_entropy(x.detach(), y.clamp(min=0))
        with pytest.raises(IndexError):
            crossent.cross_entropy(x.detach(), y)  # outside of training the host waits


DTYPES, SOME = (torch.float32, torch.bfloat16), {"label_smoothing": 0.1, "softcap": 8.0, "z_loss": 0.01}
OF_MANY = list(product(DTYPES, ({}, SOME), (on_triton, on_triton_at_once)))
PAIRS_OF_MANY = [OF_MANY[number] for number in (0, 3, 5, 6)]  # any two of dtype, options and way meet


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("shape", [(2, 33000), (2, 5000), (2, 150, 3), (70, 300)], ids=str)
def test_many_classes(shape, case, monkeypatch):
    """Across memory they are walked in a loop from 129 on, not from 1,025, of which the interpreter has for seconds."""
    real = triton_kernels().cut_of

    def cut_of(classes, itemsize, side_by_side, at_most):
        return real(classes, itemsize, side_by_side, at_most if side_by_side else 128)

    monkeypatch.setattr(triton_kernels(), "cut_of", cut_of)
    with new_plans():
        check_many_classes(shape, *PAIRS_OF_MANY[case])


@pytest.mark.parametrize("case", range(4))
def test_rows_that_begin_anywhere(case, monkeypatch):
    """They are read by lines of memory: with labels in every tile, cut into parts, and where a row is ignored."""
    real, (dtype, options, way) = triton_kernels().cut_of, PAIRS_OF_MANY[case]

    def cut_of(classes, itemsize, side_by_side, at_most):
        return real(classes, itemsize, side_by_side, min(at_most, 64 if classes < 1000 else 512))

    monkeypatch.setattr(triton_kernels(), "cut_of", cut_of)
    with new_plans():
        check_many_classes((9, 301), dtype, options, way)
        if way is on_triton:
            check_many_classes((2, 5003), dtype, options, partial(on_triton, processors=lambda device: 6))
        x, y = logits(3, 303, dtype=dtype), torch.tensor([302, -100, 0])
        with way():
            (gradient,) = torch.autograd.grad(crossent.cross_entropy(x, y, reduction="sum"), x)
        exact = torch.softmax(x.detach().double(), 1) - torch.nn.functional.one_hot(y.clamp(min=0), 303)
        exact[1] = 0
        torch.testing.assert_close(gradient.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_loop_across_memory():
    check_many_classes((1, 1030, 2), torch.float32, {}, on_triton)


@pytest.mark.soak
@pytest.mark.parametrize(("dtype", "options", "way"), OF_MANY)
@pytest.mark.parametrize("shape", [(2, 33000), (2, 5000), (2, 1500, 3), (70, 300)], ids=str)
def test_every_way_through_many_classes(shape, dtype, options, way):
    check_many_classes(shape, dtype, options, way)


def check_many_classes(shape, dtype, options, way):
    """Tiles, parts of rows and loops, against PyTorch in float64."""
    x = logits(*shape, dtype=torch.float64).detach()
    x.view(shape[0], shape[1], -1)[0, 3] += 30
    x = x.to(dtype).requires_grad_()
    y = torch.randint(shape[1], shape[:1] + shape[2:], generator=torch.Generator().manual_seed(1))
    y.view(-1)[0] = 3
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(2)) if options else None
    exact = x.detach().double().requires_grad_()
    z = 8.0 * torch.tanh(exact / 8.0) if options else exact
    by_row = torch.nn.functional.cross_entropy(
        z, y, None if weight is None else weight.double(), label_smoothing=options.get("label_smoothing", 0.0),
        reduction="none",
    )  # fmt: skip
    divisor = y.numel() if weight is None else weight[y].double().sum()
    if options:
        smoothing, of_label = options["label_smoothing"], weight.double()
        mass = (1 - smoothing) * of_label[y] + smoothing * of_label.sum() / shape[1]
        by_row = by_row + 0.01 * mass * torch.logsumexp(z, 1) ** 2
    expected = by_row.sum() / divisor
    expected.backward()
    with way():
        loss = crossent.cross_entropy(x, y, weight, **options)
        loss.backward()
    eps, largest = torch.finfo(dtype).eps, exact.grad.abs().max().item()
    torch.testing.assert_close(loss.double(), expected, rtol=max(eps, 2e-6), atol=1e-6)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2 * eps, atol=4e-6 * largest)


def test_a_second_backward_pass():
    x, y = logits(5, 7), torch.tensor([0, 6, 3, -100, 2])
    with on_triton_at_once():
        loss = crossent.cross_entropy(x, y)
        (first,) = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)
        (second,) = torch.autograd.grad(loss, x, torch.tensor(3.0))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


class _NothingIsRead(TorchDispatchMode):
    """Raises where the host would have to wait for a device: numbers that are read, shapes that depend on data."""

    FORBIDDEN = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.FORBIDDEN, f"{function} waits for the device"
        if function.overloadpacket.__name__ == "index":
            assert all(at is None or at.dtype is not torch.bool for at in args[1]), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def nothing_is_read(as_on_a_gpu, monkeypatch):
    from crossent.frontends.torch import modes, nodes

    for module in (modes, nodes):  # a mode must not change which way a call takes
        monkeypatch.setattr(module, "dispatch_modes", lambda: 0)
    monkeypatch.setattr(as_on_a_gpu._Late, "look", lambda self: None)  # it reads the host's memory
    return _NothingIsRead()


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
@pytest.mark.parametrize(
    ("kind", "reduction"),
    [
        ("denominator", "mean"),
        *product(["plain", "everything", "soft", "bad label", "in place"], ["mean", "sum", "none"]),
    ],
)
def test_nothing_is_read(way, reduction, kind, nothing_is_read):
    x, y = logits(5, 7), torch.tensor([0, 6, 3, -100, 9 if kind == "bad label" else 2])
    options = {
        "everything": {
            "weight": torch.rand(7), "sample_weight": torch.rand(5), "label_smoothing": 0.1, "softcap": 5.0,
            "z_loss": 0.01,
        },
        "denominator": {"denominator": torch.tensor(3.0)},
        "in place": {"inplace_backward": True},
    }.get(kind, {})  # fmt: skip
    if kind == "soft":
        y = torch.softmax(logits(5, 7, seed=1).detach(), 1).requires_grad_()
    if kind == "in place":
        x = x * 1.0
    leaves = [leaf for leaf in (x, y) if leaf.requires_grad]
    with way(), nothing_is_read:
        loss = crossent.cross_entropy(x, y, reduction=reduction, **options)
        torch.autograd.grad(loss, leaves, torch.full_like(loss, 0.5))


def test_what_is_read_is_noticed(nothing_is_read):
    with nothing_is_read, pytest.raises(AssertionError, match="waits for the device"):
        crossent.cross_entropy(logits(5, 7), torch.tensor([0, 6, 3, -100, 2])).item()


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
def test_in_place(way):
    leaf, y = logits(5, 7), torch.tensor([0, 6, 3, -100, 2])
    expected, x = torch.autograd.grad(crossent.cross_entropy(leaf, y), leaf)[0], leaf * 1.0
    with way():
        (gradient,) = torch.autograd.grad(crossent.cross_entropy(x, y, inplace_backward=True), x)
    assert gradient.data_ptr() == x.data_ptr()
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", ["mean", "everything", "soft, everything", "class weights none"])
def test_shards(options):
    """As `test_stages.test_shards_of_the_classes`, of which shards may have no classes."""
    from test_stages import check_shards

    check_shards((TORCH, triton_kernels().TritonKernels(lambda device: 2), torch.as_tensor), [0, 0, 4, 10], options)


@pytest.mark.parametrize("kind", ["mean", "everything", "soft", "everything none"])
def test_compiled(kind, monkeypatch):
    """The operators that a graph has are the kernels' too."""
    kernels, calls = triton_kernels().TritonKernels, []
    for name in ("forward", "gradients"):
        method = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given, _do=method: calls.append(_do.__name__) or _do(*given))
    values, target, options = make((5, 7), None, **OPTIONS[kind])
    options = {key: torch.as_tensor(value) if hasattr(value, "shape") else value for key, value in options.items()}
    x, y = torch.as_tensor(values, dtype=torch.float32).requires_grad_(), torch.as_tensor(target)
    y = y.float().requires_grad_() if y.is_floating_point() else y
    leaves = [leaf for leaf in (x, y) if leaf.requires_grad]
    step = torch.compile(lambda x, y: crossent.cross_entropy(x, y, **options), fullgraph=True, backend="aot_eager")
    loss = crossent.cross_entropy(x, y, **options)
    expected = torch.autograd.grad(loss, leaves, torch.ones_like(loss))
    with on_triton():
        found = step(x, y)
        gradients = torch.autograd.grad(found, leaves, torch.ones_like(found))
    assert calls == ["forward", "gradients"]
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_plan():
    x, y = logits(5, 7), torch.tensor([0, 6, 3, -100, 2])
    with on_triton():
        planned = str(crossent.plan(crossent.cross_entropy, x, y))
        assert "a few sums of each row" in planned and "one launch, which is kept ready" in planned
        assert "kept ready" not in str(crossent.plan(crossent.cross_entropy, x, y, torch.rand(7)))
    with on_triton_at_once():
        planned = crossent.plan(crossent.cross_entropy, x, y)
        assert planned.path == "kernels in two stages" and "the logits are read once" in str(planned)
        assert "kept ready" not in str(planned)
        for options in ({"reduction": "none"}, {"inplace_backward": True}):
            assert "the logits are read once" not in str(crossent.plan(crossent.cross_entropy, x, y, **options))


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
def test_scaled_gradients_of_float16(way):
    """What a GradScaler is for: gradients too small for float16 are scaled before they are rounded."""
    x, y = logits(4, 9, dtype=torch.float16), torch.tensor([0, 8, 1, 2])
    exact = x.detach().double().requires_grad_()
    scale = torch.tensor(2.0**-14, dtype=torch.float64)
    (torch.nn.functional.cross_entropy(exact, y) * scale).backward()
    with way():
        loss = crossent.cross_entropy(x, y, denominator=4 * 2.0**28, loss_dtype="float32")
        loss.backward(torch.tensor(2.0**14))
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2e-3, atol=2.0**-24)


def test_groups_of_programs(as_on_a_gpu):
    """The last program of each group adds up the group, and the last of all the groups."""
    x, y = logits(70, 300), torch.arange(70)
    y[[66, 69]] = 300
    for way in (on_triton, on_triton_at_once):
        with way():
            loss = crossent.cross_entropy(x, y.clamp(max=299), reduction="sum")
            expected = torch.nn.functional.cross_entropy(x.double(), y.clamp(max=299), reduction="sum")
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0.0)
            assert crossent.cross_entropy(x, y).isnan()
            with pytest.raises(IndexError, match="Target 300 at position 66 is out"):
                loss.backward()


def test_a_captured_note_is_told_of_whenever_it_arrives(as_on_a_gpu, monkeypatch):
    """A graph runs its kernels again and again: a run with good labels takes nothing back, and each bad one is told."""
    with monkeypatch.context() as capturing:
        capturing.setattr(as_on_a_gpu, "is_captured", lambda device: True)
        with pytest.raises(RuntimeError, match="run the step once before"):
            as_on_a_gpu.note(torch.device("cpu"))
    x, y = logits(4, 9), torch.tensor([0, 1, 2, 3])
    with on_triton():
        crossent.cross_entropy(x, y)
        with monkeypatch.context() as capturing:
            capturing.setattr(as_on_a_gpu, "is_captured", lambda device: True)
            note = as_on_a_gpu.note(x.device)
            capturing.setattr(as_on_a_gpu._late, "note", lambda device: note)
            crossent.cross_entropy(x, y)
        for first, then in [(9, -7), (-7, 9)]:
            with monkeypatch.context() as replaying:  # the kernels leave it where the capture said
                replaying.setattr(as_on_a_gpu._Late, "note", lambda self, device: note)
                replaying.setattr(as_on_a_gpu._Late, "look", lambda self: None)
                for at, label in ((2, first), (1, then), (3, 3)):
                    crossent.cross_entropy(x, torch.where(torch.arange(4) == at, label, y))
            for _ in range(as_on_a_gpu._IN_TURN + 1):
                as_on_a_gpu.note(x.device)  # nobody else gets it
            with pytest.raises(IndexError, match=f"Target {first} at position 2 is out"):
                crossent.cross_entropy(x, y)
            crossent.cross_entropy(x, y)  # it was told once


class Graph:
    """A graph that is captured, as far as it is there."""


@pytest.fixture
def captures(as_on_a_gpu, monkeypatch):
    """What captures losses of a call as part of a graph."""
    as_on_a_gpu.note(torch.device("cpu"))  # there is memory

    @contextlib.contextmanager
    def capture(graph):
        with monkeypatch.context() as capturing:
            capturing.setattr(as_on_a_gpu, "is_captured", lambda device: True)
            capturing.setattr(as_on_a_gpu, "_capturing_graph", lambda device: graph)
            yield

    return capture


def captured_note(late):
    note = late.note(torch.device("cpu"))
    late.refuse(note, lambda label, row: IndexError(f"Target {label} at {row}"))
    return note


def leave_bad(note, row, label):
    note.found[:3], note.flag[0] = torch.tensor([row, label, row ^ label]), 1


def test_notes_of_graphs_that_are_gone(captures, as_on_a_gpu):
    """They are used again; what was left in them is told first. Of more graphs at a time no error says which it is."""
    for _ in range(as_on_a_gpu._CAPTURED + 1):
        graph = Graph()
        with captures(graph):
            note = captured_note(as_on_a_gpu)
    leave_bad(note, 3, 7)
    graphs = [Graph() for _ in range(as_on_a_gpu._CAPTURED)]  # the last one is gone
    for graph in graphs:
        with captures(graph):
            found = captured_note(as_on_a_gpu)
    with pytest.raises(IndexError, match="^Target 7 at 3$"):
        as_on_a_gpu.look()
    as_on_a_gpu.look()
    for _ in range(2):  # to which parts of several come
        found.found[:3], found.flag[0] = torch.tensor([5, 1, 0]), 1
        with pytest.raises(IndexError, match="one of the CUDA graphs captured last: of more than 2048 losses"):
            as_on_a_gpu.look()
    del graphs[5]
    with captures(Graph()):
        leave_bad(captured_note(as_on_a_gpu), 1, -8)
    with pytest.raises(IndexError, match="^Target -8 at 1$"):
        as_on_a_gpu.look()


def test_the_graph_of_a_capture(as_on_a_gpu, monkeypatch):
    """It is PyTorch that says which it is, and before 2.13 nobody."""
    graph, device = object.__new__(torch.cuda.CUDAGraph), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.delattr(torch._C._CUDAGraph, "get_currently_capturing_graph", raising=False)
    assert as_on_a_gpu._capturing_graph(device) is None
    for known, expected in [(graph, graph), (object(), None)]:
        say = staticmethod(lambda known=known: known)
        monkeypatch.setattr(torch.cuda.CUDAGraph, "get_currently_capturing_graph", say, raising=False)
        assert as_on_a_gpu._capturing_graph(device) is expected


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_captured_head_has_one_note(reduction, captures, as_on_a_gpu):
    """However many chunks it has."""
    (notes,), graph = as_on_a_gpu._late.notes.values(), Graph()
    x, matrix = logits(5, 4), logits(7, 4, seed=1)
    before = len(notes.of_graphs)
    with on_triton(), captures(graph):
        chunks = {"options": Chunks(batch_chunk_size=1), "reduction": reduction}
        crossent.linear_cross_entropy(x, matrix, torch.arange(5), **chunks).sum().backward()
    assert before - len(notes.of_graphs) == 1


def test_a_note_on_its_way(as_on_a_gpu, monkeypatch):
    """It is told when all of it is there. Nothing is asked of the device, which may be capturing in another thread."""
    monkeypatch.setattr(as_on_a_gpu, "is_captured", lambda device: False)
    for name in ("synchronize", "current_stream", "Event"):
        monkeypatch.delattr(torch.cuda, name)
    notes, device = as_on_a_gpu._Notes(False), torch.device("cuda", 0)
    as_on_a_gpu._late.notes[False] = notes
    for row, label, order in product((0, 2, 2**40), (9, -5, -(2**63)), permutations(range(3))):
        note = notes.new(device)
        as_on_a_gpu.refuse(note, lambda label, row: IndexError(f"Target {label} at {row}"))
        note.flag[0] = 1
        for place in order:
            as_on_a_gpu.look()
            note.found[place] = (row, label, row ^ label)[place]
        with pytest.raises(IndexError, match=f"^Target {label} at {row}$"):
            as_on_a_gpu.look()
        as_on_a_gpu.look()


CALLS = {
    "cross_entropy": ((3, 300), (3,), {}),
    "linear_cross_entropy": ((3, 4), (300, 4), (3,), {}),
    "head of each": ((3, 4), (300, 4), (3,), {"reduction": "none"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_leave_no_memory_behind(name, as_on_a_gpu, monkeypatch):
    """CUDA graphs of compiled programs (`mode="reduce-overhead"`) own what is allocated, and refuse what stays."""
    launches = triton_kernels()
    monkeypatch.setattr(launches, "_stream_on", lambda device: 0)
    monkeypatch.setattr(launches, "_counters", {})
    *shapes, labels, options = CALLS[name]
    leaves, y = [logits(*shape, seed=len(shape)) for shape in shapes], torch.zeros(labels, dtype=torch.int64)
    function = getattr(crossent, name, crossent.linear_cross_entropy)

    def step(*leaves):
        return function(*leaves, y, **options).sum()

    def tensors():
        gc.collect()
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    operators = torch.compile(step, backend="aot_eager", fullgraph=True)
    with on_triton():
        torch.autograd.grad(operators(*leaves), leaves)
        for meaning in (notes.meaning for notes in as_on_a_gpu._late.notes.values()):
            meaning[:] = [None] * len(meaning)
        launches._counters.clear()
        before = tensors()
        torch.autograd.grad(operators(*leaves), leaves)
        assert tensors() == before
        if name == "cross_entropy":
            torch.autograd.grad(step(*leaves), leaves)
            assert launches._counters  # else this test would show nothing


def gradients_made(monkeypatch):
    """A list that grows with each gradient that a forward pass makes."""
    made, at_once = [], triton_kernels().TritonKernels.at_once
    monkeypatch.setattr(triton_kernels().TritonKernels, "at_once", lambda *a, **k: made.append(1) or at_once(*a, **k))
    return made


def test_gradients_that_nobody_can_ask_for_are_not_made(monkeypatch):
    x, y, made = logits(4, 9), torch.tensor([0, 8, 1, 2]), gradients_made(monkeypatch)
    soft = torch.softmax(logits(4, 9, seed=1).detach(), 1)
    with on_triton_at_once():
        with torch.no_grad():
            crossent.cross_entropy(x, y)
        with torch.inference_mode():
            crossent.cross_entropy(x, y)
        crossent.cross_entropy(x.detach(), y)
        crossent.cross_entropy(x.detach(), soft.requires_grad_())
        assert not made
        crossent.cross_entropy(x, y)
        assert made


def test_gradients_that_nobody_has_asked_for(monkeypatch):
    """They change no bit of those that come later, of which the two ways make others: the call alone says which."""
    x, y = logits(4, 9, dtype=torch.bfloat16), torch.tensor([0, 8, 1, 2])
    upstream, found, made = torch.tensor(3.0, dtype=torch.bfloat16), [], gradients_made(monkeypatch)
    for way in (on_triton_at_once, on_triton_at_once, on_triton):
        with way():
            found += torch.autograd.grad(crossent.cross_entropy(x, y), x, upstream)
            assert ("read once" in str(crossent.plan(crossent.cross_entropy, x, y))) == (way is on_triton_at_once)
            for _ in range(9 - len(made)):
                crossent.cross_entropy(x, y)
    assert len(made) == 10 and torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_denominator_on_another_device():
    """It is sent to the logits, which takes no waiting between GPUs."""
    with FakeTensorMode():
        x, denominator = torch.empty(4, 9, device="xpu:0"), torch.empty((), device="xpu:1")
        assert divisor_of(loss_options(), denominator, x).device == x.device


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_dtypes_are_checked_where_a_step_is_ready(dtype):
    with on_triton():
        with pytest.raises(TypeError, match="input must be float16, bfloat16, float32 or float64"):
            crossent.cross_entropy(torch.ones(4, 9).to(dtype), torch.zeros(4, dtype=torch.int64))
        with pytest.raises(TypeError, match="target"):
            crossent.cross_entropy(torch.ones(4, 9), torch.ones(4, 9, dtype=torch.int64))


def test_labels_that_were_overwritten(as_on_a_gpu):
    """The error names the label that was bad, though its buffer has other labels by now."""
    x, y = logits(4, 9), torch.tensor([0, 9, 3, 2])
    with on_triton():
        loss = crossent.cross_entropy(x, y)
        y.copy_(torch.tensor([1, 5, 3, 2]))
        with pytest.raises(IndexError, match="Target 9 at position 1 is out"):
            loss.backward()


def test_nothing_is_kept_of_checked_labels(as_on_a_gpu):
    """Not in a compiled evaluation either, where errors come late; nor is memory made in inference mode in the way."""
    x, y = logits(4, 9).detach(), torch.tensor([0, 8, 1, 2])
    evaluate = torch.compile(crossent.cross_entropy, backend="aot_eager", fullgraph=True)
    with on_triton(), torch.inference_mode():
        labels = [y.clone() for _ in range(3)]
        for some in labels:
            evaluate(x, some)
        labels = [weakref.ref(labels.pop()) for _ in range(3)]
        del some
        gc.collect()
        assert not any(some() is not None for some in labels)
    with on_triton():
        crossent.cross_entropy(logits(4, 9), y)
    with on_triton(), torch.no_grad():
        evaluate(x, torch.tensor([0, -1, 1, 2]))
        with pytest.raises(IndexError, match="Target -1 at position 1 is out"):
            evaluate(x, y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_are_ordinary_tensors(reduction, dtype):
    """They can be changed in place, and are gone when nobody has them, without a garbage collection."""
    x, y = logits(4, 9, dtype=dtype), torch.tensor([0, 8, 1, 2])
    gc.disable()
    try:
        for way in (on_triton, on_triton_at_once):
            with way():
                loss = crossent.cross_entropy(x, y, reduction=reduction)
                node = weakref.ref(loss.grad_fn)
                loss /= 2
                loss.sum().backward()
                del loss
                assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("upstream", [torch.inf, torch.nan])
def test_ignored_rows_whatever_comes_from_above(upstream):
    for way in (on_triton, on_triton_at_once):
        x, y = logits(4, 9), torch.tensor([0, -100, 3, 2])
        with way():
            crossent.cross_entropy(x, y).backward(torch.tensor(upstream))
        assert not x.grad[1].any() and not x.grad[[0, 2, 3]].isfinite().any()


def test_labels_of_64_bits(nothing_is_read):
    x, y = logits(3, 9), torch.tensor([0, 8, 2**64 - 100], dtype=torch.uint64)
    with on_triton(), nothing_is_read, pytest.MonkeyPatch.context() as patched:
        patched.setattr(staged, "_lib_of", lambda tensors: UNREAD)  # as of tensors on a GPU
        bad, good = crossent.cross_entropy(x, y), crossent.cross_entropy(x[:2], y[:2])
    assert bad.isnan() and good.isfinite()


def test_a_mean_of_64_bits():
    x, y = logits(1001, 9), torch.arange(1001) % 9
    for way in (on_triton, on_triton_at_once):
        with way():
            mean, total = (crossent.cross_entropy(x, y, reduction=r, loss_dtype="float64") for r in ("mean", "sum"))
        assert mean.item() == pytest.approx(total.item() / 1001, rel=1e-12)


@pytest.mark.parametrize(
    ("make_view", "dim"),
    [
        (lambda x: x[:, :-1], -1),
        (lambda x: x.transpose(0, 1), -1),
        (lambda x: x.movedim(-1, 0)[:, :, 1:], 0),
    ],
)
def test_views_are_not_copied(make_view, dim, monkeypatch):
    """Logits of which the last position is left out, and others that a language model has."""
    base, read, kernels = logits(3, 5, 7).detach(), [], triton_kernels().TritonKernels
    for name in ("forward", "gradients", "at_once"):
        method = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *given, _do=method, **more: read.append(given[1].logits) or _do(*given, **more)
        )
    x = make_view(base).requires_grad_()
    rows = [size for axis, size in enumerate(x.shape) if axis != dim % 3]
    for soft in (False, True):
        y = (
            torch.softmax(logits(*x.shape, seed=2).detach(), dim)
            if soft
            else torch.arange(x.shape[dim % 3])[:1].expand(*rows)
        )
        for reduction in ("mean", "none"):
            exact = x.detach().double().requires_grad_()
            of_pytorch = torch.nn.functional.cross_entropy(
                exact.movedim(dim, 1), y.double().movedim(dim, 1) if soft else y, reduction=reduction
            )
            upstream = torch.rand(of_pytorch.shape, dtype=torch.float64)
            (expected,) = torch.autograd.grad(of_pytorch, exact, upstream)
            for way in (on_triton, on_triton_at_once):
                with way():
                    loss = crossent.cross_entropy(x, y, dim=dim, reduction=reduction)
                    (gradient,) = torch.autograd.grad(loss, x, upstream.float())
                torch.testing.assert_close(loss.double(), of_pytorch, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)
    assert all(logits.data_ptr() == x.data_ptr() for logits in read) and read


@pytest.mark.parametrize("layout", ["transposed", "cut"])
def test_operators(layout):
    """PyTorch's own checks of operators: strides, aliases and what `torch.compile` is told."""
    x = logits(4, 3, 9).detach()
    x = (x.transpose(0, 1) if layout == "transposed" else x[:, :-1]).requires_grad_()
    y = torch.zeros(x.shape[:2], dtype=torch.int64)
    with on_triton():
        step = torch.compile(lambda x: crossent.cross_entropy(x * 1.0, y, dim=-1), backend="inductor", fullgraph=True)
        (expected,) = torch.autograd.grad(crossent.cross_entropy(x, y, dim=-1), x)
        (found,) = torch.autograd.grad(step(x), x)
        torch.testing.assert_close(found, expected)
        values = [2, *compiled._values(loss_options(), compiled._LOSS)]
        torch.library.opcheck(torch.ops.crossent.loss.default, (x, y, None, None, False, *values))


def test_version():
    triton = pytest.importorskip("triton")
    assert gpus.version_of_triton() == tuple(map(int, triton.__version__.split(".")[:2]))
