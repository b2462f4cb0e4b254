"""LookupLayer is a plain module: attributes, no state, copied and pickled."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch

import hps_torch
from conftest import StoreMaker
from oracle import same_bits


def layer_of_nothing() -> hps_torch.LookupLayer:
    return hps_torch.LookupLayer("ps.json", "model", 3, 16)


def test_the_layer_has_the_predecessors_name_and_attributes():
    from hps_torch.lookup_layer import LookupLayer

    layer = LookupLayer("ps.json", "model", 3, 16)

    assert hps_torch.LookupLayer is LookupLayer
    assert (LookupLayer.__module__, LookupLayer.__name__) == (
        "hps_torch.lookup_layer",
        "LookupLayer",
    )
    assert layer.ps_config_file == "ps.json"
    assert (layer.model_name, layer.table_id, layer.emb_vec_size) == ("model", 3, 16)


def test_the_layer_takes_the_predecessors_argument_names():
    layer = hps_torch.LookupLayer(
        ps_config_file="ps.json", model_name="model", table_id=1, emb_vec_size=8
    )
    assert (layer.table_id, layer.emb_vec_size) == (1, 8)


def test_the_layer_has_no_parameters_and_no_state():
    layer = layer_of_nothing()

    assert list(layer.parameters()) == list(layer.buffers()) == []
    assert layer.state_dict() == {}


def test_the_path_may_be_a_path():
    assert hps_torch.LookupLayer(Path("a") / "ps.json", "model", 0, 8).ps_config_file == "a/ps.json"


def test_printing_a_model_shows_the_table():
    assert repr(layer_of_nothing()) == (
        "LookupLayer('ps.json', model_name='model', table_id=3, emb_vec_size=16)"
    )


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copied_or_pickled_layer_serves_the_same_rows(make_store: StoreMaker, again):
    store = make_store()
    keys = torch.arange(5)
    layer = store.layer()
    layer(keys)

    assert same_bits(again(layer)(keys), store.oracles[0].lookup(keys))


def test_a_model_is_saved_and_loaded_by_torch(make_store: StoreMaker):
    store = make_store()
    buffer = io.BytesIO()
    torch.save(torch.nn.Sequential(store.layer(), torch.nn.Linear(8, 1)), buffer)
    buffer.seek(0)

    model = torch.load(buffer, weights_only=False)

    keys = torch.arange(5)
    assert same_bits(model[0](keys), store.oracles[0].lookup(keys))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((b"ps.json", "model", 0, 8), TypeError, "ps_config_file"),
        ((None, "model", 0, 8), TypeError, "NoneType"),
        (("ps.json", 7, 0, 8), TypeError, "model_name"),
        (("ps.json", "model", "0", 8), TypeError, "integer"),
        (("ps.json", "model", 0, 8.0), TypeError, "integer"),
        (("ps.json", "model", -1, 8), ValueError, "table_id"),
        (("ps.json", "model", 0, 0), ValueError, "emb_vec_size"),
        (("ps.json", "model", 0, -8), ValueError, "emb_vec_size"),
    ],
)
def test_wrong_arguments_are_named(arguments, error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        hps_torch.LookupLayer(*arguments)


def test_moving_the_layer_to_another_type_changes_nothing(make_store: StoreMaker):
    store = make_store()
    keys = torch.arange(5)

    assert same_bits(store.layer().half().eval()(keys), store.oracles[0].lookup(keys))
