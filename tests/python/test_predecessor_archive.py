"""A model that was scripted with the predecessor's plugin loads and runs unchanged."""

import zipfile
from pathlib import Path

import pytest
import torch

from conftest import StoreMaker, dense_table
from oracle import same_bits

ARCHIVE = Path(__file__).parent.parent / "fixtures" / "predecessor_model.pt"


def test_the_archive_is_one_of_the_predecessors():
    with zipfile.ZipFile(ARCHIVE) as archive:
        code = "".join(
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")
        )
        classes = [name for name in archive.namelist() if "hps_torch/lookup_layer" in name]

    assert classes
    assert "class LookupLayer(Module)" in code
    assert "ops.hps_torch.hps_embedding_lookup(keys, " in code


@pytest.mark.parametrize("variable", ["HPS_CONFIG_FILE", "HPS_CONFIG_DIR"])
def test_the_archive_loads_and_runs(
    make_store: StoreMaker, tiers: str, variable: str, monkeypatch: pytest.MonkeyPatch
):
    # The archive says /models/ps.json, model "predecessor", dims 8 and 4, int64 keys.
    store = make_store(
        dense_table(50, 8), dense_table(50, 4, seed=1), tiers=tiers, model="predecessor"
    )
    monkeypatch.setenv(variable, store.path if variable == "HPS_CONFIG_FILE" else str(store.folder))
    model = torch.jit.load(str(ARCHIVE))
    users, items = torch.arange(20).reshape(10, 2), torch.arange(30, 50).reshape(10, 2)

    rows, scores = model([users, items])

    expected = torch.cat([store.oracles[0].lookup(users), store.oracles[1].lookup(items)], dim=-1)
    assert same_bits(rows, expected)
    assert scores.shape == (10, 1)


def test_the_archive_loads_where_the_configuration_is_missing():
    model = torch.jit.load(str(ARCHIVE))

    with pytest.raises(RuntimeError, match=r"/models/ps\.json"):
        model([torch.arange(2).reshape(1, 2), torch.arange(2).reshape(1, 2)])
