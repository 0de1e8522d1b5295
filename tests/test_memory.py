"""Memory that is used again: it comes back when its last user is gone, is never lent twice, and can be taken away."""

import gc
import os
import threading

import numpy as np
import pytest
import torch
from harness import waiting_gradient

import crossent
from crossent.frontends import _memory

pytestmark = pytest.mark.skipif(not _memory._AVAILABLE, reason="no madvise(MADV_FREE) here: memory is not used again")
SIZE, LARGE = _memory.LENT_FROM + 12344, _memory._LARGE_FROM + 12344


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch):
    monkeypatch.setattr(_memory, "_waiting", [])


def address(array):
    return array.__array_interface__["data"][0]


def test_blocks_come_back_and_are_lent_again():
    first = _memory.block(SIZE)
    assert len(first) == SIZE and address(first) % 2**21 == 0
    first[0] = first[-1] = 1
    where = address(first)
    second = _memory.block(SIZE)
    assert abs(address(second) - where) >= SIZE
    del first
    again = _memory.block(SIZE - 1000)
    assert address(again) == where


def test_a_block_much_too_large_is_not_lent():
    large = _memory.block(4 * SIZE)
    del large
    assert len(_memory._waiting) == 1
    small = _memory.block(SIZE)
    assert len(small) == SIZE and len(_memory._waiting) == 1


def test_few_blocks_wait():
    """Of large ones and of others, which do not push each other out."""
    blocks = [_memory.block(size) for size in (SIZE, LARGE) for _ in range(_memory._KEPT_AT_MOST + 3)]
    blocks.clear()
    assert sorted(map(_memory._is_large, _memory._waiting)) == [False] * 4 + [True] * 4


def test_what_waits_is_given_back_on_request():
    _memory.block(SIZE)
    assert _memory._waiting
    crossent.empty_cache()
    assert not _memory._waiting


def test_no_memory(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no memory")

    monkeypatch.setattr(_memory.mmap, "mmap", refuse)
    assert _memory.block(SIZE) is None
    logits = torch.randn(3, SIZE // 8)
    assert torch.equal(crossent.softmax(logits, 1).sum(1).round(), torch.ones(3))


def large_logits(size=LARGE):
    return torch.randn(4, size // 16 + 16)


@pytest.mark.parametrize("function", [crossent.softmax, crossent.log_softmax])
def test_results_own_their_memory(function):
    """A view keeps it, it is not given out while in use, and it is an ordinary tensor."""
    logits = large_logits()
    first = function(logits, 1)
    row, expected = first[2], first[2].clone()
    assert first._base is None and first.is_contiguous() and function(logits, 1).data_ptr() != first.data_ptr()
    del first
    function(logits + 1, 1)
    assert torch.equal(row, expected)
    row.zero_()
    del row
    assert len(_memory._waiting) >= 1


def test_result_changed_in_place():
    """As PyTorch's: what a softmax returns may be written to, and its gradient then raises."""
    logits = large_logits().requires_grad_()
    result = crossent.softmax(logits, 1)
    result.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@pytest.mark.usefixtures("nothing_planned")
@pytest.mark.parametrize(("rows", "size", "in_forward"), [(4, SIZE, False), (1100, SIZE, True), (4, LARGE, False)])
def test_gradients_of_steps_do_not_share_memory(rows, size, in_forward):
    """Of either kind of block, and wherever they are made."""
    logits, labels = torch.randn(rows, -(-size // (4 * rows)), requires_grad=True), torch.arange(rows) % 4
    assert (waiting_gradient(crossent.cross_entropy(logits, labels)) is not None) == in_forward
    kept = []
    for _ in range(3):
        logits.grad = None
        crossent.cross_entropy(logits, labels).backward()
        kept.append(logits.grad)
    assert len({gradient.data_ptr() for gradient in kept}) == 3
    assert all(torch.equal(gradient, kept[0]) for gradient in kept)
    logits.grad, where = None, {gradient.data_ptr() for gradient in kept}
    kept.clear()
    crossent.cross_entropy(logits, labels).backward()
    assert logits.grad.data_ptr() in where


@pytest.mark.parametrize("size", [SIZE, LARGE])
def test_numpy_gradients(size):
    logits, labels = large_logits(size).numpy(), np.arange(4)
    _, first = crossent.value_and_grad(crossent.cross_entropy)(logits, labels)
    _, second = crossent.value_and_grad(crossent.cross_entropy)(logits, labels)
    assert first.flags.writeable and not np.shares_memory(first, second) and np.array_equal(first, second)
    where = address(second)
    del second
    assert address(crossent.value_and_grad(crossent.cross_entropy)(logits, labels)[1]) == where


@pytest.mark.parametrize(
    "use",
    [
        lambda block: block.view(np.float32)[5:],
        lambda block: np.frombuffer(block, np.int16),
        lambda block: memoryview(block)[7:],
        lambda block: torch.frombuffer(block, dtype=torch.bfloat16)[4:].view(2, -1),
        lambda block: torch.from_numpy(block).untyped_storage(),
        lambda block: torch.from_numpy(block).numpy()[9:],
    ],
)
def test_whatever_uses_the_memory_keeps_it(use):
    used = use(_memory.block(2 * SIZE))
    gc.collect()
    assert not _memory._waiting
    del used
    assert len(_memory._waiting) == 1


def test_many_threads_and_the_collector():
    """Blocks that come back from several threads at once, and from garbage with cycles, are never lent twice."""
    failures = []

    def work(number):
        for _ in range(20):
            mine = _memory.block(SIZE)[: SIZE // 8 * 8].view(np.int64)
            mine[::4096] = number
            cycle = [mine]
            cycle.append(cycle)
            if not (mine[::4096] == number).all():
                failures.append(number)
            del mine, cycle
            gc.collect(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_copies_what_is_lent():
    mine = _memory.block(SIZE)[: SIZE // 8 * 8].view(np.int64)
    mine[:] = 1
    child = os.fork()
    if not child:
        mine[:] = 2
        os._exit(0 if (mine == 2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0 and (mine == 1).all()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="reads /proc")
@pytest.mark.parametrize("size", [SIZE, LARGE])
def test_the_system_may_take_what_waits(size):
    """What waits is marked as free for the taking, all of it, if it is large."""
    block = _memory.block(size)
    block[:] = 1
    before = _lazily_free()
    del block
    marked = _lazily_free() - before
    assert marked >= size // 1024 - 4096 if size == LARGE else marked <= 0


def _lazily_free():
    """In kB."""
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("LazyFree:"))
