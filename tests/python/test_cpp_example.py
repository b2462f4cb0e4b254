"""The LibTorch example serves what Python serves, bit for bit, without Python."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hps_torch
from conftest import Store, StoreMaker, dense_table
from oracle import same_bits

SERVE = Path(__file__).parents[2] / "build" / "serve" / "serve"

pytestmark = pytest.mark.skipif(
    not SERVE.exists(), reason="scripts/lib/build-serve.sh has not built the example"
)


class Model(nn.Module):
    def __init__(self, users: hps_torch.LookupLayer, items: hps_torch.LookupLayer):
        super().__init__()
        self.users = users
        self.items = items
        self.dense = nn.Linear(12, 4)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cat([self.users(users), self.items(items)], dim=-1)
        return rows, self.dense(torch.tanh(rows.nan_to_num()))


@pytest.fixture
def store(make_store: StoreMaker, tiers: str) -> Store:
    return make_store(dense_table(100, 8), dense_table(70, 4, default=1.5, seed=1), tiers=tiers)


def saved_model(store: Store) -> tuple[Model, str]:
    torch.manual_seed(0)
    model = Model(store.layer(0), store.layer(1)).eval()
    path = str(store.folder / "model.pt")
    torch.jit.script(model).save(path)
    return model, path


def serve(folder: Path, *options: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SERVE), *map(str, options)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, **env},
        check=False,
    )


INPUTS = {"users": torch.arange(-3, 97), "items": torch.arange(100).flip(0)}


@pytest.mark.parametrize("given", [list(INPUTS.values()), tuple(INPUTS.values()), INPUTS])
def test_outputs_equal_pythons(store: Store, given):
    model, path = saved_model(store)
    torch.save(given, store.folder / "inputs.pt")
    done = serve(
        store.folder, "--model", path, "--inputs", "inputs.pt", "--outputs", "outputs.pt",
        "--batch", 32, "--threads", 1,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows, scores = torch.load(store.folder / "outputs.pt")
    with torch.no_grad():
        batches = [
            model(users, items)
            for users, items in zip(*(t.split(32) for t in INPUTS.values()), strict=True)
        ]
    expected = [oracle.lookup(keys) for oracle, keys in zip(
        store.oracles, INPUTS.values(), strict=True
    )]  # fmt: skip
    assert same_bits(rows, torch.cat(expected, dim=-1))
    assert same_bits(scores, torch.cat([scores for _, scores in batches]))


def test_the_configuration_is_found_through_the_environment(store: Store):
    _, path = saved_model(store)
    torch.save(INPUTS, store.folder / "inputs.pt")
    moved = store.folder / "moved.json"
    Path(store.path).rename(moved)
    options = ["--model", path, "--inputs", "inputs.pt", "--outputs", "outputs.pt"]

    failed = serve(store.folder, *options)
    assert failed.returncode == 1
    assert store.path in failed.stderr

    done = serve(store.folder, *options, HPS_CONFIG_FILE=str(moved))
    assert done.returncode == 0, done.stderr
    rows, _ = torch.load(store.folder / "outputs.pt")
    assert same_bits(rows[:, :8].contiguous(), store.oracles[0].lookup(INPUTS["users"]))


def test_errors_end_the_program_with_their_message(store: Store):
    _, path = saved_model(store)
    torch.save([t.int() for t in INPUTS.values()], store.folder / "inputs.pt")

    done = serve(store.folder, "--model", path, "--inputs", "inputs.pt")

    assert done.returncode == 1
    assert "supportlonglong" in done.stderr


def test_several_passes_report_times(store: Store):
    _, path = saved_model(store)
    torch.save(INPUTS, store.folder / "inputs.pt")

    done = serve(
        store.folder, "--model", path, "--inputs", "inputs.pt", "--repeat", 5, "--batch", 10
    )

    assert done.returncode == 0, done.stderr
    assert "50 forwards of up to 10 rows: median" in done.stdout
    assert "p99" in done.stdout
