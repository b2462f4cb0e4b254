"""Models with lookups are scripted, traced, frozen, saved and loaded like any other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits


class Concatenated(nn.Module):
    """All tables of a store, one after the other."""

    def __init__(self, layers: list[hps_torch.LookupLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, keys: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for layer in self.layers:
            rows.append(layer(keys))  # noqa: PERF401 - TorchScript has no comprehension here
        return torch.cat(rows, dim=-1)


class Forked(nn.Module):
    """As :class:`Concatenated`, with one task per table, as the predecessor needed it."""

    def __init__(self, layers: list[hps_torch.LookupLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, keys: Tensor) -> Tensor:
        futures: list[torch.jit.Future[Tensor]] = []
        for layer in self.layers:
            futures.append(torch.jit.fork(layer, keys))  # noqa: PERF401
        rows: list[Tensor] = []
        for future in futures:
            rows.append(torch.jit.wait(future))  # noqa: PERF401
        return torch.cat(rows, dim=-1)


class ConstantKeys(nn.Module):
    """A model whose keys are a buffer: what must not be done."""

    def __init__(self, layer: hps_torch.LookupLayer):
        super().__init__()
        self.layer = layer
        self.register_buffer("keys", torch.arange(3))

    def forward(self, scale: Tensor) -> Tensor:
        return self.layer(self.keys) * scale


def two_tables(make_store: StoreMaker, **settings):
    return make_store(dense_table(60, 8), dense_table(60, 4, seed=1), **settings)


def expected_rows(store, keys: Tensor) -> Tensor:
    return torch.cat([oracle.lookup(keys) for oracle in store.oracles], dim=-1)


@pytest.mark.parametrize("model", [Concatenated, Forked])
def test_a_scripted_model_is_saved_and_loaded(make_store: StoreMaker, tmp_path: Path, model):
    store = two_tables(make_store)
    scripted = torch.jit.script(model([store.layer(0), store.layer(1)]))
    scripted.save(str(tmp_path / "model.pt"))
    loaded = torch.jit.load(str(tmp_path / "model.pt"))

    for keys in (torch.arange(60), torch.arange(12).reshape(3, 4), torch.tensor([70, -1])):
        assert same_bits(scripted(keys), expected_rows(store, keys))
        assert same_bits(loaded(keys), expected_rows(store, keys))


def test_a_loaded_layer_keeps_its_attributes(make_store: StoreMaker, tmp_path: Path):
    store = make_store()
    torch.jit.script(store.layer()).save(str(tmp_path / "layer.pt"))

    layer = torch.jit.load(str(tmp_path / "layer.pt"))

    assert layer.ps_config_file == store.path
    assert (layer.model_name, layer.table_id, layer.emb_vec_size) == ("model", 0, 8)
    assert layer.original_name == "LookupLayer"


def test_scripting_opens_nothing(make_store: StoreMaker):
    store = make_store()
    torch.jit.script(store.layer())

    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.stats(store.path)
    assert caught.value.code == hps_torch.ErrorCode.NOT_FOUND


def test_a_traced_model_serves_other_shapes(make_store: StoreMaker, tmp_path: Path):
    store = two_tables(make_store)
    traced = torch.jit.trace(Concatenated([store.layer(0), store.layer(1)]), torch.arange(5))
    traced.save(str(tmp_path / "model.pt"))
    loaded = torch.jit.load(str(tmp_path / "model.pt"))

    for keys in (torch.arange(60), torch.tensor([[59, 60]]), torch.empty(0, dtype=torch.int64)):
        assert same_bits(loaded(keys), expected_rows(store, keys))


def test_a_frozen_model_looks_its_inputs_up(make_store: StoreMaker, tmp_path: Path):
    store = two_tables(make_store)
    scripted = torch.jit.script(Concatenated([store.layer(0), store.layer(1)]).eval())
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(scripted))
    frozen.save(str(tmp_path / "model.pt"))
    loaded = torch.jit.load(str(tmp_path / "model.pt"))

    for keys in (torch.arange(60), torch.tensor([3, 3, 99])):
        assert same_bits(loaded(keys), expected_rows(store, keys))


def test_freezing_bakes_the_rows_of_constant_keys_in(make_store: StoreMaker):
    # TorchScript takes the operator for a pure function. Keys must be inputs of a model: this
    # test says what happens otherwise, so that a change does not go unnoticed.
    store = make_store()
    scripted = torch.jit.script(ConstantKeys(store.layer()).eval())
    frozen = torch.jit.freeze(scripted)
    asked = store.stats()["keys"]

    frozen(torch.ones(1))
    assert store.stats()["keys"] == asked
    assert "hps::lookup" not in str(frozen.graph)

    scripted(torch.ones(1))
    assert store.stats()["keys"] == asked + 3


def test_errors_reach_the_caller_of_a_scripted_model(make_store: StoreMaker):
    store = make_store()
    layer = torch.jit.script(hps_torch.LookupLayer(store.path, "another", 0, 8))

    with pytest.raises(RuntimeError, match="another"):
        layer(torch.arange(3))
    assert same_bits(store.lookup(torch.arange(3)), store.oracles[0].lookup(torch.arange(3)))
