"""The programs of docs/recipes.md in two processes: the weights that they learn, beside one process's whole batches."""

import importlib.util
import os
import runpy
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from processes import start
from torch import distributed
from torch.distributed.tensor import DTensor

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)

PROCESSES = 2
FOLDER = Path(__file__).parents[1] / "docs" / "recipes"


def assert_learns(found, model, batches, loss, rate=0.5):
    """That `found` has the weights that `model` gets by plain gradient descent in float64, a step for each batch."""
    model = model.double()
    before = [parameter.clone() for parameter in model.parameters()]
    for batch in batches:
        model.zero_grad()
        loss(model, *batch).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
    assert max((new - old).abs().max() for new, old in zip(model.parameters(), before)) > 0.01
    for (name, mine), exact in zip(found.named_parameters(), model.parameters()):
        mine = mine.full_tensor() if isinstance(mine, DTensor) else mine
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: name + said)


def of_rows(model, inputs, labels):
    return F.cross_entropy(model(inputs.double()), labels)


def data_parallel(made):
    torch.manual_seed(0)
    assert_learns(made["model"].module, torch.nn.Linear(5, 7), made["batches"], of_rows)


def fully_sharded(made):
    def loss(model, tokens, labels):
        logits = model.layers(model.embedding(tokens)) @ model.head.linear.weight.T
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    torch.manual_seed(0)
    whole = made["LanguageModel"](11, 8)
    assert isinstance(made["model"].head.linear.weight, DTensor)
    assert_learns(made["model"], whole, zip(made["batches"], made["labels"]), loss)


def lightning_module(made):
    steps = []  # of the optimizer: two batches of 4 rows in each process, and one of 2 at the end of an epoch
    for epoch in range(2):
        samplers = [torch.utils.data.DistributedSampler(made["labels"], PROCESSES, rank) for rank in range(PROCESSES)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        rows = torch.tensor([list(sampler) for sampler in samplers])
        steps += [rows[:, :8], rows[:, 8:]]
    assert any((made["labels"][rows] == -100).all(1).any() for rows in steps)  # in one of the processes
    torch.manual_seed(0)
    batches = [(made["inputs"][rows.flatten()], made["labels"][rows.flatten()]) for rows in steps]
    assert_learns(made["model"], made["Classifier"](), batches, lambda model, *batch: of_rows(model.layer, *batch))


def trainer(made):
    import transformers

    def loss(model, tokens, labels):
        return F.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    transformers.set_seed(0)
    whole = transformers.LlamaForCausalLM(made["config"])
    assert_learns(made["model"], whole, [(made["tokens"], made["labels"])] * 2, loss)


def trainer_loss(made):
    import transformers

    def loss(model, tokens, labels):
        logits = model(tokens).logits.flatten(0, 1).double()
        return F.cross_entropy(logits, labels.flatten(), label_smoothing=0.1)

    transformers.set_seed(0)
    whole = transformers.LlamaForTokenClassification(made["config"])
    assert_learns(made["model"], whole, [(made["tokens"], made["labels"])] * 2, loss)


RECIPES = {
    "data_parallel": data_parallel,
    "accelerate_loop": data_parallel,
    "fully_sharded": fully_sharded,
    "lightning_module": lightning_module,
    "trainer": trainer,
    "trainer_loss": trainer_loss,
}
NEEDS = {"accelerate_loop": ["accelerate"], "lightning_module": ["lightning"]}
NEEDS |= dict.fromkeys(("trainer", "trainer_loss"), ["accelerate", "transformers"])


def test_all_are_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(RECIPES)


def _work(rank, ports, folder):
    """One of the processes: all programs, as torchrun starts them."""
    torch.set_num_threads(1)
    for name, port in ports.items():
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "HF_HUB_OFFLINE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "recipes"}
        with mock.patch.object(distributed, "destroy_process_group"):  # weights that are spread are to be gathered
            made = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        RECIPES[name](made)
        distributed.destroy_process_group()
        Path(folder, f"{name}{rank}").touch()


def lacking(name):
    """What there is not, that a program needs."""
    if name == "fully_sharded" and torch.__version__ < "2.10":
        return "fully_shard is for other devices than the CPU there"
    missing = [package for package in NEEDS.get(name, []) if importlib.util.find_spec(package) is None]
    return f"needs {' and '.join(missing)}" if missing else None


@pytest.fixture(scope="module")
def outcome():
    """Which programs every process has finished and found right, and what went wrong with the next one."""
    stores = {name: distributed.TCPStore("127.0.0.1", 0, is_master=True) for name in RECIPES if not lacking(name)}
    with tempfile.TemporaryDirectory() as folder:
        ports, error = {name: store.port for name, store in stores.items()}, "it hangs"
        context = start(_work, (ports, folder), PROCESSES, join=False)
        try:
            context.join(timeout=300)
        except torch.multiprocessing.ProcessRaisedException as raised:
            error = str(raised)
        finally:
            for process in context.processes:
                process.kill()
        finished = {path.name for path in Path(folder).iterdir()}
    return {name for name in RECIPES if {f"{name}{rank}" for rank in range(PROCESSES)} <= finished}, error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, outcome):
    if lacking(name):
        pytest.skip(lacking(name))
    finished, error = outcome
    assert name in finished, error
