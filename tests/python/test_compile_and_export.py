"""torch.compile, torch.export and AOTInductor know the operator."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hps_torch
from conftest import StoreMaker, Table
from oracle import same_bits


class Scores(nn.Module):
    """Two lookups and a dense layer."""

    def __init__(self, layer: hps_torch.LookupLayer):
        super().__init__()
        self.layer = layer
        self.dense = nn.Linear(layer.emb_vec_size, 3)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.layer(users)
        return rows, self.dense(torch.sigmoid(self.layer(items)))


@pytest.fixture
def model(make_store: StoreMaker) -> Scores:
    # Ordinary numbers: results of arithmetic on NaNs need not agree.
    store = make_store(Table(torch.arange(100), torch.randn(100, 8)))
    return Scores(store.layer()).eval()


def batch(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(100, (size,)), torch.randint(100, (size, 4))


@pytest.mark.parametrize("name", ["hps.lookup", "hps_torch.hps_embedding_lookup"])
@pytest.mark.parametrize("shape", [(5,), (0,), (2, 3), ()], ids=str)
def test_opcheck_passes(make_store: StoreMaker, name: str, shape: tuple[int, ...]):
    # Without NaNs, which are not equal to themselves.
    store = make_store(Table(torch.arange(100), torch.randn(100, 8)))
    namespace, operator = name.split(".")
    keys = torch.randint(100, shape)

    torch.library.opcheck(
        getattr(getattr(torch.ops, namespace), operator).default,
        (keys, store.path, store.model, 0, 8),
    )


def test_the_fake_kernel_gives_shape_and_type_and_opens_nothing():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        rows = hps_torch.lookup(torch.empty((3, 4), dtype=torch.int32), "nowhere", "m", 0, 8)
    assert (rows.shape, rows.dtype, rows.device.type) == ((3, 4, 8), torch.float32, "cpu")

    rows = hps_torch.lookup(
        torch.empty((2, 5), dtype=torch.int64, device="meta"), "nowhere", "m", 0, 16
    )
    assert (rows.shape, rows.dtype, rows.device.type) == ((2, 5, 16), torch.float32, "meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bool])
def test_the_fake_kernel_refuses_what_the_operator_refuses(dtype: torch.dtype):
    keys = torch.empty(3, dtype=dtype, device="meta")

    with pytest.raises(RuntimeError, match=f"int64 or .*int32.*{str(dtype).split('.')[1]}"):
        hps_torch.lookup(keys, "nowhere", "m", 0, 8)
    with pytest.raises(RuntimeError, match="emb_vec_size"):
        hps_torch.lookup(torch.empty(3, dtype=torch.int64, device="meta"), "nowhere", "m", 0, 0)


def test_a_compiled_model_is_one_graph_and_gives_equal_results(model: Scores):
    compiled = torch.compile(model, fullgraph=True)

    for size in (7, 12, 1):
        arguments = batch(size)
        rows, scores = compiled(*arguments)
        expected_rows, expected_scores = model(*arguments)
        assert same_bits(rows, expected_rows)
        torch.testing.assert_close(scores, expected_scores)


def test_a_compiled_model_takes_dynamic_shapes_without_compiling_again(model: Scores):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)

    for size in (7, 12, 33):
        arguments = batch(size)
        assert same_bits(compiled(*arguments)[0], model(*arguments)[0])
    assert counter.frame_count == 1


def test_errors_reach_the_caller_of_a_compiled_model(make_store: StoreMaker):
    store = make_store()
    layer = hps_torch.LookupLayer(store.path, "another", 0, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    with pytest.raises(RuntimeError, match="another"):
        compiled(torch.arange(3))


def exported(model: Scores) -> torch.export.ExportedProgram:
    size = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(
        model, batch(6), dynamic_shapes={"users": {0: size}, "items": {0: size}}
    )


def test_an_exported_program_takes_any_batch(model: Scores, tmp_path: Path):
    torch.export.save(exported(model), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()

    for size in (6, 1, 100):
        arguments = batch(size)
        assert same_bits(loaded(*arguments)[0], model(*arguments)[0])
        assert same_bits(loaded(*arguments)[1], model(*arguments)[1])


@pytest.mark.slow
def test_an_aotinductor_package_gives_equal_results(model: Scores, tmp_path: Path):
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(model), package_path=str(tmp_path / "model.pt2")
        )
    loaded = torch._inductor.aoti_load_package(path)

    for size in (6, 1, 100):
        arguments = batch(size)
        rows, scores = loaded(*arguments)
        expected_rows, expected_scores = model(*arguments)
        assert same_bits(rows, expected_rows)
        torch.testing.assert_close(scores, expected_scores)
