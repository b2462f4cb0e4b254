"""Fused tables share one key space, and are looked up in any order, from any thread."""

import pytest
import torch

import hps_torch
from conftest import StoreMaker, Table, random_bits, table_of
from oracle import same_bits
from test_torchscript import Concatenated, Forked

FUSED = {"top": {"fuse_embedding_table": True}}


def four_tables() -> list[Table]:
    """Tables with disjoint keys; the first and third, the second and fourth can be fused."""
    return [
        table_of(torch.arange(100 * i, 100 * i + 50), dim, default=i, seed=i)
        for i, dim in enumerate((8, 4, 8, 4))
    ]


@pytest.mark.parametrize("model", [Concatenated, Forked])
def test_fused_tables_need_no_rendezvous(make_store: StoreMaker, tiers: str, model):
    store = make_store(*four_tables(), tiers=tiers, **FUSED)
    scripted = torch.jit.script(model([store.layer(i) for i in range(4)]))
    for first in (0, 100, 200, 300):
        keys = torch.arange(first, first + 50)
        table_id = first // 100

        rows = scripted(keys).split([8, 4, 8, 4], dim=-1)[table_id]

        assert same_bits(rows, store.oracles[table_id].lookup(keys))


def test_one_fused_table_may_be_looked_up_alone(make_store: StoreMaker, tiers: str):
    store = make_store(*four_tables(), tiers=tiers, **FUSED)
    for table_id in (3, 0, 0, 2, 1):
        keys = torch.arange(100 * table_id, 100 * table_id + 50)
        assert same_bits(store.lookup(keys, table_id), store.oracles[table_id].lookup(keys))


def test_storage_names_are_the_predecessors(make_store: StoreMaker):
    store = make_store(*four_tables(), tiers="host and ssd", **FUSED)
    hps_torch.open(store.path)

    names = [store.stats(i)["storage_name"] for i in range(4)]

    # Groups are numbered by ascending dim.
    wide, narrow = "hps_et.model.fused_embedding1", "hps_et.model.fused_embedding0"
    assert names == [wide, narrow, wide, narrow]


def test_unknown_keys_get_the_default_of_the_table_that_was_asked(make_store: StoreMaker):
    store = make_store(*four_tables(), **FUSED)
    for table_id in range(4):
        rows = store.lookup(torch.tensor([9_999]), table_id)
        assert rows.unique().tolist() == [float(table_id)]


def test_a_key_of_a_fused_sibling_is_served(make_store: StoreMaker, tiers: str):
    store = make_store(*four_tables(), tiers=tiers, **FUSED)
    keys_of_table_2 = torch.arange(200, 250)

    assert same_bits(store.lookup(keys_of_table_2, 0), store.oracles[2].lookup(keys_of_table_2))


def test_fused_tables_may_agree_on_a_key(make_store: StoreMaker, tiers: str):
    first, _, third, _ = four_tables()
    keys = torch.cat([third.keys, first.keys[:1]])
    third = Table(keys, torch.cat([third.vectors, first.vectors[:1]]))
    store = make_store(first, third, tiers=tiers, **FUSED)

    assert same_bits(store.lookup(keys, 1), store.oracles[1].lookup(keys))


def test_fused_tables_that_disagree_on_a_key_are_refused(make_store: StoreMaker, tiers: str):
    first, _, third, _ = four_tables()
    third = Table(torch.cat([third.keys, torch.tensor([7])]), random_bits(51, 8, seed=9))
    store = make_store(first, third, tiers=tiers, embedding_table_names=["users", "items"], **FUSED)

    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.open(store.path)

    for part in ("users", "items", "7"):
        assert part in str(caught.value)


def test_a_model_can_stay_out_of_fusion(make_store: StoreMaker):
    # Both tables have the keys 0 to 49, with different rows.
    tables = [table_of(torch.arange(50), seed=i) for i in range(2)]
    store = make_store(*tables, fuse_embedding_table=False, **FUSED)
    keys = torch.arange(50)

    for table_id in range(2):
        assert same_bits(store.lookup(keys, table_id), store.oracles[table_id].lookup(keys))
