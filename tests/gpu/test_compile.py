"""torch.compile gives what eager PyTorch gives, with CUDA graphs and without."""

import os
import shutil
import unittest

import torch
import torch._inductor.config
from torch import Tensor, nn

import hps_torch
from gpu.common import DEVICE, GpuTestCase, Store
from gpu.tables import Table, random_keys, same_bits, seeded

ROWS = 2_000
# Triton compiles a small C file for whatever it runs.
has_compiler = bool(os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang"))))
needs_compiler = unittest.skipUnless(has_compiler, "Triton finds no C compiler here")

#: An arrangement of tiers for each way in which a lookup reaches its rows.
ARRANGEMENTS = [
    ("static", "host"),
    ("uvm", "host"),
    ("dynamic", "host"),
    ("dynamic", "host and ssd"),
]


class Scores(nn.Module):
    """A lookup and a dense layer."""

    def __init__(self, layer: hps_torch.LookupLayer):
        super().__init__()
        self.layer = layer
        self.dense = nn.Linear(layer.emb_vec_size, 8)

    def forward(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.layer(keys)
        return rows, self.dense(rows)


class Compile(GpuTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Starting helpers takes longer than what there is to compile.
        torch._inductor.config.compile_threads = 1

    def setUp(self):
        torch._dynamo.reset()
        self.generator = seeded(1)

    def model(self, cache: str, tiers: str) -> tuple[Store, Scores]:
        # Ordinary numbers: results of arithmetic on NaNs need not agree.
        vectors = torch.randn(ROWS, 32, generator=self.generator)
        table = Table(random_keys(ROWS), 32, vectors=vectors)
        store = self.make_store(table, cache=cache, tiers=tiers, gpucacheper=0.2)
        store.open()
        return store, Scores(store.layer()).to(DEVICE).eval()

    def assert_equals_eager(self, compiled, store: Store, model: Scores, counts) -> None:
        for count in counts:
            keys = store.tables[0].sample(count, self.generator).to(DEVICE)
            with torch.no_grad():
                torch.compiler.cudagraph_mark_step_begin()
                rows, scores = (result.clone() for result in compiled(keys))
                expected_rows, expected_scores = model(keys)
            assert same_bits(rows, store.tables[0].expected(keys))
            assert same_bits(expected_rows, store.tables[0].expected(keys))
            torch.testing.assert_close(scores, expected_scores, rtol=1e-3, atol=1e-3)

    def test_without_a_code_generator(self):
        for cache, tiers in ARRANGEMENTS:
            with self.subTest(cache=cache, tiers=tiers):
                torch._dynamo.reset()
                store, model = self.model(cache, tiers)
                compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
                self.assert_equals_eager(compiled, store, model, (7, 12, 1, 500))

    def test_the_backend_that_captures_cuda_graphs(self):
        for cache in ("static", "uvm"):
            with self.subTest(cache=cache):
                torch._dynamo.reset()
                store, model = self.model(cache, "host")
                compiled = torch.compile(model, fullgraph=True, backend="cudagraphs")
                self.assert_equals_eager(compiled, store, model, [100] * 8)

    @needs_compiler
    def test_the_default_mode(self):
        for cache, tiers in ARRANGEMENTS:
            with self.subTest(cache=cache, tiers=tiers):
                torch._dynamo.reset()
                store, model = self.model(cache, tiers)
                compiled = torch.compile(model, fullgraph=True)
                self.assert_equals_eager(compiled, store, model, (7, 12, 1, 500))

    @needs_compiler
    def test_reduce_overhead(self):
        for cache in ("static", "uvm"):
            with self.subTest(cache=cache):
                torch._dynamo.reset()
                store, model = self.model(cache, "host")
                counters = torch._dynamo.utils.counters["inductor"]
                counters.clear()
                compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
                # The first runs as it is, the second is captured, the others are replays.
                self.assert_equals_eager(compiled, store, model, [100] * 8)
                assert not counters["cudagraph_skips"], "no CUDA graph was made"

    @needs_compiler
    @unittest.skipUnless(
        hasattr(torch._inductor.config, "custom_should_partition_ops"),
        "this torch cannot be told to leave an operator out of its graphs",
    )
    def test_reduce_overhead_around_a_lookup_that_asks_the_host(self):
        store, model = self.model("dynamic", "host and ssd")
        with torch._inductor.config.patch(custom_should_partition_ops=["hps::lookup"]):
            compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
            self.assert_equals_eager(compiled, store, model, [100] * 8)
