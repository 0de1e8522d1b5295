"""The machine code of the kernels that calls launch, made with no GPU.

Triton is told of a device that is not there, and compiles each kernel that the library launches instead of running it:
for the arguments it is launched with, so that types, divisibility and constants are those that a GPU would be given.
That takes a process without Triton's interpreter:

    python tests/machine_code.py sm_90                      a line for each kernel of each call in `CALLS`
    python tests/machine_code.py sm_90 "step, bfloat16"     and the loops of the calls whose names have these words
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import networkx
import torch

if sys.argv[1:2] and sys.argv[1].startswith("gfx"):  # before anything asks how many threads a warp has
    torch.version.hip = "7.0"

from harness import on_triton

import crossent
from crossent._options import loss_options
from crossent.kernels.triton.token_launches import TokenKernels

TARGETS = {
    "sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "sm_100": ("cuda", 100, 32), "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64), "gfx950": ("hip", "gfx950", 64),
}  # fmt: skip


# What is compiled: the kernels of a call.


class Device:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, backend, arch, warp_size):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(backend, arch, warp_size)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compiled_for(target):
    """The names and the compiled kernels of what is launched meanwhile."""
    from triton.compiler import CompiledKernel
    from triton.runtime import JITFunction, driver

    found, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, kernel))
        return kernel

    driver.set_active(Device(*TARGETS[target]))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(CompiledKernel, "__getitem__", lambda kernel, grid: lambda *arguments: None),
    ):
        yield found


class Call(NamedTuple):
    """Of a function of logits of `shape`; a "step" with its backward pass."""

    shape: tuple
    dtype: str
    options: dict = {}
    mode: str = "step"
    function: str = "cross_entropy"

    @property
    def name(self):
        function = () if self.function == "cross_entropy" else (self.function,)
        return ", ".join((*function, self.mode, " x ".join(map(str, self.shape)), self.dtype, *self.options))

    def run(self):
        x = torch.empty(self.shape, dtype=getattr(torch, self.dtype)).requires_grad_(self.mode == "step")
        labels, options = torch.zeros(self.shape[:1] + self.shape[2:], dtype=torch.int64), dict(self.options)
        for name, size in (("weight", self.shape[1:2]), ("sample_weight", labels.shape)):
            if name in options:
                options[name] = torch.ones(size)
        softmax = self.function in ("softmax", "log_softmax")
        with on_triton(processors=lambda device: 132):
            found = getattr(crossent, self.function)(x, 1 if softmax else labels, **options)
            if self.mode == "step":
                found.backward(torch.empty_like(found))


class TokenCall(Call):
    """Of the statistics of labels, with their backward pass."""

    def run(self):
        rows, _ = self.shape
        logits, labels = torch.empty(self.shape, dtype=getattr(torch, self.dtype)), torch.zeros(rows, dtype=torch.int64)
        results, kernels = [*torch.zeros(3, rows), labels], TokenKernels()
        kernels.tokens(logits, labels, loss_options(), results)
        kernels.token_gradient(logits, labels, loss_options(), results, results[:3])


ALL = {"label_smoothing": 0.1, "softcap": 30.0, "z_loss": 1e-4, "weight": None, "sample_weight": None}


# Long rows in a loop, rows that are read once, some of which begin anywhere in a line of memory, two passes over logits
# that stay in the cache, and few and more classes across memory.
CALLS = [
    Call((1024, 128256), "bfloat16"),
    Call((1024, 128256), "bfloat16", mode="evaluation"),
    Call((1024, 128256), "bfloat16", ALL),
    Call((1000, 50257), "bfloat16"),
    Call((4096, 32768), "bfloat16"),
    Call((4096, 32768), "float32"),
    Call((4096, 30522), "bfloat16"),
    Call((512, 16384), "bfloat16"),
    Call((32768, 1000), "float32"),
    Call((16, 19, 256, 256), "float32"),
    Call((16, 150, 256, 256), "float32"),
    Call((1024, 128256), "bfloat16", function="log_softmax"),
    Call((1000, 50257), "bfloat16", function="log_softmax"),
    Call((4096, 30522), "bfloat16", function="softmax"),
    Call((8192, 1000), "bfloat16", function="log_softmax"),
    Call((1024, 50265), "bfloat16", mode="evaluation", function="prediction_stats"),
    Call((8192, 1000), "float32", function="nll_loss"),
    TokenCall((512, 32001), "bfloat16", mode="tokens"),
]


def calls_in(dtype):
    """Of every kind, in a dtype."""
    shapes = [
        (1024, 128256),
        (4096, 32768),
        (16384, 100),
        (64, 128256),
        (512, 16384),
        (16, 19, 256, 256),
        (2, 3000, 999),
    ]
    of_shapes = [Call(shape, dtype, options) for shape in shapes for options in ({}, ALL)]
    return [*of_shapes, Call((1000, 50257), dtype), Call((512, 16384), dtype, {"label_smoothing": 0.1}, "evaluation")]


def kernels_of(calls, target):
    """For each kernel of the calls: the call, its name and its `Code`."""
    found, codes = {}, {}
    for call in calls:
        with compiled_for(target) as kernels:
            call.run()
        for name, kernel in kernels:
            if kernel.hash not in codes:  # several calls launch the same one
                codes[kernel.hash] = read(kernel)
            found[call.name, kernel.hash] = call, name, codes[kernel.hash]
    return list(found.values())


# What is read of it.


class Instruction(NamedTuple):
    at: int
    name: str
    text: str
    to: int | None = None  # where it jumps
    falls: bool = True  # whether it may be followed by the next


class Code(NamedTuple):
    instructions: list[Instruction]
    registers: int
    spilled: int  # bytes of a thread
    warps: int


def sass(kernel):
    tools = Path(sys.modules["triton"].__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [tools / "cuobjdump", "--dump-sass", "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    used = re.search(r"REG:(\d+) STACK:(\d+)", said)
    found = []
    for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", said):
        guard, name, rest = re.fullmatch(r"(@\S+ )?(\S+)(.*)", text.strip()).groups()
        to = re.search(r"0x([0-9a-f]+)", rest) if name.startswith(("BRA", "JMP")) else None
        always = not guard and (name.startswith(("EXIT", "RET")) or (to and "," not in rest and name != "BRA.DIV"))
        if name != "NOP":
            found.append(Instruction(int(at, 16), name, text.strip(), to and int(to[1], 16), not always))
    return Code(found, int(used[1]), int(used[2]), kernel.metadata.num_warps)


def amd_assembly(kernel):
    text, labels, found = kernel.asm["amdgcn"], {}, []
    for line in text.partition(".Lfunc_end")[0].splitlines():
        if label := re.match(r"(\.?\w+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\t([a-z]\w+)(.*?)(;.*)?$", line):
            found.append((instruction[1], line.partition(";")[0].strip()))
    instructions = []
    for at, (name, line) in enumerate(found):
        to = labels.get(line.split()[-1]) if "branch" in name else None
        instructions.append(Instruction(at, name, line, to, name not in ("s_branch", "s_endpgm")))
    sizes = {key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in ("vgpr_count", "private_segment_fixed_size")}
    return Code(instructions, *sizes.values(), kernel.metadata.num_warps)


def read(kernel):
    return sass(kernel) if "cubin" in kernel.asm else amd_assembly(kernel)


WIDTHS = {
    "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1,
    "dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "ushort": 2, "short": 2, "sshort": 2, "ubyte": 1, "sbyte": 1, "byte": 1,
}  # fmt: skip


def width(name):
    """Bytes that a thread moves."""
    return next((WIDTHS[part] for part in re.split(r"[._]", name) if part in WIDTHS), 4)


def counts(instructions):
    """How many there are, and of what kinds; loads and stores by their bytes."""

    def moves(*names):
        found = Counter(width(i.name) for i in instructions if re.match("|".join(names), i.name))
        return dict(sorted(found.items()))

    def of(*names):
        return sum(bool(re.match("|".join(names), i.name)) for i in instructions)

    return {
        "all": len(instructions),
        "loads": moves("LDG", "global_load", "buffer_load"),
        "stores": moves("STG", "global_store", "buffer_store"),
        "exponentials": of(r"MUFU\.EX2", "v_exp"),
        "barriers": of(r"BAR\.", "s_barrier"),
        "shuffles": of("SHFL", "REDUX", "ds_bpermute", "ds_swizzle", ".*_dpp"),
        "local": of("LDL", "STL", "scratch_"),
    }


class Loop(NamedTuple):
    instructions: list[Instruction]  # all of it
    usual: list[Instruction]  # the shortest way around, which passes the label by


def loops(code):
    """The innermost ones."""
    graph = networkx.DiGraph()
    for here, following in zip(code.instructions, [*code.instructions[1:], None]):
        if following and here.falls:
            graph.add_edge(here.at, following.at)
        if here.to is not None:
            graph.add_edge(here.at, _first_from(code, here.to))
    by_place = {instruction.at: instruction for instruction in code.instructions}
    for body, usual in _innermost(graph, graph):
        yield Loop([by_place[at] for at in sorted(body)], [by_place[at] for at in usual])


def _first_from(code, at):
    return next(instruction.at for instruction in code.instructions if instruction.at >= at)  # there may be a NOP


def _innermost(graph, whole):
    for nodes in networkx.strongly_connected_components(graph):
        body, entries = graph.subgraph(nodes), [n for n in nodes if not nodes.issuperset(whole.predecessors(n))]
        if not body.number_of_edges() or not entries:  # the instruction behind the end jumps to itself
            continue
        header = min(entries)
        deeper = list(_innermost(graph.subgraph(nodes - {header}), whole))
        ways = (networkx.shortest_path(body, header, last) for last in body.predecessors(header))
        yield from deeper or [(nodes, min(ways, key=len))]


def described(call, name, code):
    """What a test asks of it."""
    ways = [{"all": counts(loop.instructions), "usual": counts(loop.usual)} for loop in loops(code)]
    found = {"call": call.name, "kernel": name, "registers": code.registers, "spilled": code.spilled, "loops": ways}
    return found | {"counts": counts(code.instructions)}


def show(call, name, code, with_text):
    found = described(call, name, code)
    print(", ".join(f"{key}: {value}" for key, value in found.items() if key != "loops"))
    for loop, of_loop in zip(loops(code), found["loops"]):
        print(f"    of {len(loop.instructions)} in a loop usually {of_loop['usual']}")
        if with_text:
            print("\n".join(f"        {instruction.text}" for instruction in loop.usual))


if __name__ == "__main__":
    target, *words = sys.argv[1:]
    if words[:1] == ["json"]:
        calls = [call for dtype in words[1:] for call in calls_in(dtype)] or CALLS
        print(json.dumps([described(*kernel) for kernel in kernels_of(calls, target)]))
    else:
        for kernel in kernels_of([call for call in CALLS if all(word in call.name for word in words)], target):
            show(*kernel, with_text=words)
