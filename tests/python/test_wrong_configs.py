"""A wrong configuration is an error that names file, place, what was found and what is expected.

Correcting the file is enough to open it, in the same process.
"""

import json
from pathlib import Path

import pytest
import torch

import hps_torch
from conftest import Store, StoreMaker, dense_table
from oracle import same_bits


def opening_fails(store: Store) -> str:
    """Opens a wrong configuration and returns the message, which lookups must give too."""
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.open(store.path)
    message = str(caught.value)
    assert store.path in message
    with pytest.raises(RuntimeError) as from_lookup:
        store.lookup(torch.arange(3))
    assert message in str(from_lookup.value)
    return message


def serves(store: Store) -> bool:
    keys = torch.arange(-1, 20)
    return same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


# Each: where, the wrong value, what the message must say beside the place.
MISSPELT = [
    ("volatile_db.type", "paralel_hash_map", ["parallel_hash_map"]),
    ("volatile_db.type", "rocks_db", ["parallel_hash_map"]),
    ("persistent_db.type", "rocksdbb", ["rocks_db"]),
    ("persistent_db.type", "redis", ["rocks_db"]),
    ("volatile_db.overflow_policy", "evict_never", ["evict_oldest"]),
    ("update_source.type", "kafak", ["kafka_message_queue"]),
    ("models[0].embedding_cache_type", "dynamc", ["dynamic"]),
    ("models[0].embedding_cache_type", "stochastic", ["static"]),
]
WRONG_TYPES = [
    ("supportlonglong", "yes", ["true"]),
    ("supportlonglong", 1, ["true"]),
    ("models", {}, ["list"]),
    ("models", [], ["list"]),
    ("volatile_db", [], ["object"]),
    ("volatile_db.num_partitions", "many", ["integer"]),
    ("volatile_db.num_partitions", None, ["integer"]),
    ("volatile_db.initial_cache_rate", "half", ["number"]),
    ("models[0].gpucache", "true", ["true"]),
    ("models[0].sparse_files", "tables/0", ["list"]),
    ("models[0].embedding_vecsize_per_table[0]", 8.5, ["integer"]),
    ("models[0].default_value_for_each_table[0]", "0", ["number"]),
]
OUT_OF_RANGE = [
    ("volatile_db.num_partitions", 0, ["1"]),
    ("volatile_db.num_partitions", -4, ["-4"]),
    ("volatile_db.initial_cache_rate", 1.5, ["1"]),
    ("volatile_db.overflow_margin", -1, ["-1"]),
    ("volatile_db.overflow_resolution_target", 2, ["1"]),
    ("models[0].max_batch_size", -64, ["-64"]),
    ("models[0].embedding_vecsize_per_table[0]", 0, ["1"]),
    ("models[0].default_value_for_each_table[0]", 1e300, ["32-bit"]),
]
WRONG_LISTS = [
    ("models[0].embedding_vecsize_per_table", [8, 8], ["a list of 2 values", "1 value"]),
    ("models[0].embedding_vecsize_per_table", [], ["1 value"]),
    ("models[0].maxnum_catfeature_query_per_table_per_sample", [1, 1], ["1 value"]),
    ("models[0].embedding_table_names", ["a", "b"], ["1 value"]),
    ("models[0].sparse_files", [], ["empty"]),
]
WRONG_NAMES = [
    ("models[0].model", "", ["letters"]),
    ("models[0].model", "a/b", ["a/b"]),
    ("models[0].embedding_table_names", ["a table"], ["a table"]),
]
NOT_BUILT = [
    ("volatile_db.type", "redis_cluster", ["not available in this build"]),
    ("update_source.type", "kafka_message_queue", ["not available in this build"]),
]
REMOTE = [
    ("models[0].sparse_files[0]", path, ["not supported"])
    for path in (
        "hdfs://host:9000/t",
        "s3://bucket/t",
        "gs://bucket/t",
        "https://storage.googleapis.com/b/t",
    )
]


def set_at(config: dict, place: str, value: object) -> None:
    """Sets the value at a JSON path such as ``models[0].sparse_files[1]``."""
    steps = place.replace("[", ".").replace("]", "").split(".")
    for step in steps[:-1]:
        config = config[int(step)] if isinstance(config, list) else config.setdefault(step, {})
    if isinstance(config, list):
        config[int(steps[-1])] = value
    else:
        config[steps[-1]] = value


@pytest.mark.parametrize(
    ("place", "value", "said"),
    MISSPELT + WRONG_TYPES + OUT_OF_RANGE + WRONG_LISTS + WRONG_NAMES + NOT_BUILT + REMOTE,
)
def test_a_wrong_value_is_named_and_can_be_corrected(
    make_store: StoreMaker, place: str, value: object, said: list[str]
):
    store = make_store()
    good = store.config()
    store.rewrite(lambda config: set_at(config, place, value))

    message = opening_fails(store)

    # A wrong list of names may be reported at the name.
    assert f" {place}" in message
    assert "found " in message
    assert "expected " in message
    for part in said:
        assert part in message
    Path(store.path).write_text(json.dumps(good))
    assert serves(store)


@pytest.mark.parametrize(
    "key",
    [
        "supportlonglong",
        "models",
        "models[0].sparse_files",
        "models[0].deployed_device_list",
        "models[0].embedding_vecsize_per_table",
        "models[0].default_value_for_each_table",
        "models[0].maxnum_catfeature_query_per_table_per_sample",
    ],
)
def test_a_missing_required_key_is_named(make_store: StoreMaker, key: str):
    store = make_store()
    name = key.rsplit(".", 1)[-1]
    store.rewrite(lambda config: (config["models"][0] if "." in key else config).pop(name))

    assert name in opening_fails(store)


def test_all_problems_are_reported_at_once(make_store: StoreMaker):
    store = make_store()

    def spoil(config):
        config["supportlonglong"] = 3
        config["volatile_db"]["type"] = "tree"
        config["models"][0]["gpucacheper"] = "all"
        config["models"][0]["sparse_files"] = ["nowhere"]

    store.rewrite(spoil)
    message = opening_fails(store)

    for place in ("supportlonglong", "volatile_db.type", "gpucacheper", "sparse_files[0]"):
        assert place in message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"supportlonglong": true,}', "{'a': 1}", '{"models": [}', "\x00"]
)
def test_text_that_is_not_json_is_an_error_with_a_line(make_store: StoreMaker, text: str):
    store = make_store()
    Path(store.path).write_text("\n\n" + text)

    assert f"{store.path}:" in opening_fails(store)


def test_bytes_that_are_not_text_are_an_error(make_store: StoreMaker):
    store = make_store()
    Path(store.path).write_bytes(b"{\xff\xfe}")

    assert "UTF-8" in opening_fails(store)


def test_a_duplicate_key_is_an_error(make_store: StoreMaker):
    store = make_store()
    text = Path(store.path).read_text()
    Path(store.path).write_text(text.replace("{", '{"supportlonglong": false,', 1))

    assert "supportlonglong" in opening_fails(store)


def test_two_models_of_one_name_are_an_error(make_store: StoreMaker):
    store = make_store()
    store.rewrite(lambda config: config["models"].append(config["models"][0]))

    assert "models[1].model" in opening_fails(store)


def test_a_missing_table_folder_is_an_error(make_store: StoreMaker):
    store = make_store()
    store.rewrite(lambda config: set_at(config, "models[0].sparse_files[0]", "tables/none"))

    message = opening_fails(store)
    assert "models[0].sparse_files[0]" in message
    assert str(store.folder / "tables" / "none") in message


def test_comments_are_allowed(make_store: StoreMaker):
    store = make_store()
    text = Path(store.path).read_text()
    Path(store.path).write_text("// as in the samples\n" + text.replace(",\n", ", // why\n"))

    assert serves(store)


@pytest.mark.parametrize(
    ("place", "guess"),
    [("volatile_db.num_partition", "num_partitions"), ("models[0].gpucach", "gpucache")],
)
def test_an_unknown_key_is_a_warning_with_the_nearest_name(
    make_store: StoreMaker, capfd: pytest.CaptureFixture[str], place: str, guess: str
):
    store = make_store()
    store.rewrite(lambda config: set_at(config, place, 3))

    assert serves(store)
    warning = capfd.readouterr().err
    assert place in warning
    assert f"`{guess}`" in warning


@pytest.mark.parametrize("devices", [[0], [1], [0, 1, 2, 3], [7, 3]])
def test_cpu_keys_are_served_whatever_devices_are_deployed(make_store: StoreMaker, devices):
    if torch.cuda.is_available() and max(devices) >= torch.cuda.device_count():
        pytest.skip("with GPUs in the machine, a missing ordinal is an error")
    assert serves(make_store(deployed_device_list=devices))


@pytest.mark.parametrize(
    "settings",
    [
        {"gpucache": False},
        {"embedding_cache_type": "static"},
        {"embedding_cache_type": "uvm"},
        {"use_static_table": True},
        {"fp8_quant": False, "enable_pagelock": True},
        {"hit_rate_threshold": 1.0, "gpucacheper": 0.5, "thread_pool_size": 4},
        {"max_batch_size": 1, "maxnum_catfeature_query_per_table_per_sample": [1]},
        {"network_file": "", "label_dim": 1, "slot_num": 26, "dense_file": ""},
        {"refresh_interval": 0, "refresh_delay": 0, "cache_refresh_percentage_per_iteration": 0.2},
    ],
    ids=str,
)
def test_settings_of_the_gpu_and_of_the_predecessor_do_not_disturb(
    make_store: StoreMaker, settings: dict
):
    assert serves(make_store(**settings))


def test_defaults_beyond_the_tables_are_cut_with_a_warning(make_store: StoreMaker, capfd):
    store = make_store(dense_table(), default_value_for_each_table=[0.0, 1.0, 2.0])

    assert serves(store)
    assert "default_value_for_each_table" in capfd.readouterr().err
