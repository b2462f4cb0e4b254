"""Where a configuration is looked for, and that each has a store of its own."""

import os
from pathlib import Path

import pytest
import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits

KEYS = torch.arange(-2, 50)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HPS_CONFIG_DIR", raising=False)
    monkeypatch.delenv("HPS_CONFIG_FILE", raising=False)


def test_the_given_path_comes_first(make_store: StoreMaker, monkeypatch):
    store, other = make_store(), make_store()
    monkeypatch.setenv("HPS_CONFIG_DIR", str(other.folder))
    monkeypatch.setenv("HPS_CONFIG_FILE", other.path)

    assert hps_torch.resolve(store.path) == os.path.realpath(store.path)


def test_the_folder_comes_second_and_the_file_last(make_store: StoreMaker, monkeypatch):
    folder, file = make_store(), make_store()
    monkeypatch.setenv("HPS_CONFIG_FILE", file.path)
    assert hps_torch.resolve("/models/ps.json") == os.path.realpath(file.path)

    monkeypatch.setenv("HPS_CONFIG_DIR", str(folder.folder))
    assert hps_torch.resolve("/models/ps.json") == os.path.realpath(folder.path)
    assert hps_torch.resolve("/models/other.json") == os.path.realpath(file.path)


def test_a_missing_configuration_lists_what_was_tried(monkeypatch, tmp_path: Path):
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.resolve("/models/ps.json")
    assert "/models/ps.json" in str(caught.value)
    assert "HPS_CONFIG_DIR" in str(caught.value)
    assert "HPS_CONFIG_FILE" in str(caught.value)
    assert caught.value.code == hps_torch.ErrorCode.CONFIG

    monkeypatch.setenv("HPS_CONFIG_DIR", str(tmp_path))
    with pytest.raises(hps_torch.HpsError, match=str(tmp_path / "ps.json")):
        hps_torch.resolve("/models/ps.json")


def test_a_model_finds_its_configuration_through_the_environment(
    make_store: StoreMaker, monkeypatch
):
    store = make_store()
    layer = torch.jit.script(hps_torch.LookupLayer("/models/elsewhere.json", "model", 0, 8))
    monkeypatch.setenv("HPS_CONFIG_FILE", store.path)

    assert same_bits(layer(KEYS), store.oracles[0].lookup(KEYS))


def test_links_and_relative_paths_lead_to_one_store(make_store: StoreMaker, monkeypatch):
    store = make_store()
    link = store.folder / "link.json"
    link.symlink_to("ps.json")
    monkeypatch.chdir(store.folder)
    names = [store.path, str(link), "ps.json", "./ps.json", f"../{store.folder.name}/ps.json"]

    for name in names:
        hps_torch.lookup(KEYS, name, "model", 0, 8)

    assert {hps_torch.resolve(name) for name in names} == {os.path.realpath(store.path)}
    assert store.stats()["keys"] == len(names) * len(KEYS)


def test_tables_are_found_beside_the_configuration_from_any_folder(
    make_store: StoreMaker, tiers: str, monkeypatch, tmp_path: Path
):
    store = make_store(tiers=tiers)
    monkeypatch.chdir(tmp_path)

    assert same_bits(store.lookup(KEYS), store.oracles[0].lookup(KEYS))
    if "ssd" in tiers:
        assert (store.folder / "rocksdb").is_dir(), "a path to be made lies beside ps.json"


def test_several_configurations_live_in_one_process(make_store: StoreMaker):
    stores = [
        make_store(dense_table(60, dim, default=dim, seed=dim), tiers=tiers, supportlonglong=long)
        for dim, tiers, long in ((8, "host", True), (4, "host and ssd", False), (2, "ssd", True))
    ]
    for _ in range(2):
        for store in stores:
            keys = KEYS.int() if store.config()["supportlonglong"] is False else KEYS
            assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    assert [store.stats()["dim"] for store in stores] == [8, 4, 2]

    hps_torch.close(stores[0].path)
    keys = KEYS.int()
    assert same_bits(stores[1].lookup(keys), stores[1].oracles[0].lookup(keys))


def test_several_models_live_in_one_configuration(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(60), dense_table(60, 4, seed=1), tiers=tiers)

    def split(config):
        second = dict(config["models"][0], model="second")
        for key, value in list(config["models"][0].items()):
            if isinstance(value, list) and len(value) == 2:
                config["models"][0][key], second[key] = value[:1], value[1:]
        config["models"].append(second)

    store.rewrite(split)
    assert same_bits(store.lookup(KEYS), store.oracles[0].lookup(KEYS))
    rows = hps_torch.lookup(KEYS, store.path, "second", 0, 4)
    assert same_bits(rows, store.oracles[1].lookup(KEYS))


@pytest.mark.parametrize("name", ["ünï côdé", "with space", "日本"])
def test_paths_may_have_any_letters(make_store: StoreMaker, tmp_path: Path, name: str):
    store = make_store(tiers="host and ssd")
    folder = store.folder.rename(tmp_path / name)

    rows = hps_torch.lookup(KEYS, folder / "ps.json", "model", 0, 8)

    assert same_bits(rows, store.oracles[0].lookup(KEYS))
    assert hps_torch.stats(folder / "ps.json")["config"] == str(folder / "ps.json")


def test_two_configurations_may_name_one_database(make_store: StoreMaker):
    store = make_store(tiers="ssd")
    twin = store.folder / "twin.json"
    twin.write_text(Path(store.path).read_text())

    for path in (store.path, twin):
        rows = hps_torch.lookup(KEYS, path, "model", 0, 8)
        assert same_bits(rows, store.oracles[0].lookup(KEYS))
    hps_torch.close(store.path)
    assert same_bits(hps_torch.lookup(KEYS, twin, "model", 0, 8), store.oracles[0].lookup(KEYS))
