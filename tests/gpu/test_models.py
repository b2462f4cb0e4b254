"""Models with lookups are scripted, saved, loaded and run on the GPU like any other."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import hps_torch
from gpu.common import DEVICE, each_arrangement, error_of, size
from gpu.tables import Table, assert_rows, random_keys, same_bits, seeded

ROWS = size(800, 100)
LAYERS = size(26, 6)


class Concatenated(nn.Module):
    """All tables of a store, one after the other."""

    def __init__(self, layers: list[hps_torch.LookupLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, keys: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            rows.append(layer(keys[i]))
        return torch.cat(rows, dim=-1)


class Forked(nn.Module):
    """As :class:`Concatenated`, with one task per table, as the predecessor needed it."""

    def __init__(self, layers: list[hps_torch.LookupLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, keys: Tensor) -> Tensor:
        futures: list[torch.jit.Future[Tensor]] = []
        for i, layer in enumerate(self.layers):
            futures.append(torch.jit.fork(layer, keys[i]))
        rows: list[Tensor] = []
        for future in futures:
            rows.append(torch.jit.wait(future))  # noqa: PERF401
        return torch.cat(rows, dim=-1)


@each_arrangement()
class Models:
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tables = [
            Table(random_keys(ROWS, seed=i) if i % 2 else torch.arange(ROWS), 16, default=i)
            for i in range(LAYERS)
        ]
        cls.store = cls.make_class_store(*cls.tables, gpucacheper=0.3)

    def setUp(self):
        self.generator = seeded(7)
        self.layers = [self.store.layer(i) for i in range(LAYERS)]

    def saved_and_loaded(self, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.pt")
            module.save(path)
            return torch.jit.load(path, map_location=DEVICE)

    def batch(self) -> Tensor:
        return torch.stack([table.sample(64, self.generator) for table in self.tables]).to(DEVICE)

    def assert_model(self, model: nn.Module) -> None:
        # The second call of a scripted model may be optimised, the third runs what came of it.
        for _ in range(4):
            keys = self.batch()
            expected = [t.expected(k) for t, k in zip(self.tables, keys, strict=True)]
            assert same_bits(model(keys), torch.cat(expected, dim=-1))

    def test_a_scripted_layer_is_saved_loaded_and_given_gpu_keys(self):
        loaded = self.saved_and_loaded(torch.jit.script(self.layers[0]))
        for shape in ((64,), (4, 16), (2, 4, 8), (0,), ()):
            count = torch.Size(shape).numel()
            keys = self.tables[0].sample(count, self.generator).reshape(shape)
            assert_rows(loaded(keys.to(DEVICE)), keys.to(DEVICE), self.tables[0])
            assert_rows(loaded(keys), keys, self.tables[0])

    def test_layers_one_after_the_other(self):
        model = Concatenated(self.layers)
        self.assert_model(model)
        self.assert_model(self.saved_and_loaded(torch.jit.script(model)))

    def test_layers_by_fork(self):
        model = torch.jit.script(Forked(self.layers))
        self.assert_model(model)
        self.assert_model(self.saved_and_loaded(model))

    def test_a_frozen_model(self):
        scripted = torch.jit.script(Concatenated(self.layers).eval())
        self.assert_model(torch.jit.freeze(scripted))

    def test_a_traced_model(self):
        self.assert_model(torch.jit.trace(Concatenated(self.layers), self.batch()))

    def test_inference_mode_on_a_stream(self):
        # Not with forks: torch runs them in threads that do not know of the caller's stream.
        model = torch.jit.script(Concatenated(self.layers))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            self.assert_model(model)
        stream.synchronize()

    def test_errors_reach_the_caller_of_a_scripted_model(self):
        layer = torch.jit.script(hps_torch.LookupLayer(self.store.path, "another", 0, 16))
        assert "another" in str(error_of(lambda: layer(torch.arange(3).to(DEVICE))))
        self.assert_model(Concatenated(self.layers))
