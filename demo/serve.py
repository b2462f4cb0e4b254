"""Serves a scripted model in a process of its own, as cpp_shim/examples/serve does in C++.

The model brings the name of its configuration; beside torch, only ``import hps_torch`` is
needed here. Writes the outputs, and prints times and statistics as one line of JSON.
"""

import argparse
import json
import time

import torch

import hps_torch


def main() -> None:
    """Runs the model over the inputs in batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="archive of torch.jit.save")
    parser.add_argument("--inputs", required=True, help="list of tensors, by torch.save")
    parser.add_argument("--outputs", required=True, help="receives the outputs of all rows")
    parser.add_argument("--batch", type=int, default=1024, help="rows per forward")
    parser.add_argument("--repeat", type=int, default=1, help="passes over the inputs")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in a forward")
    parser.add_argument("--device", default="cpu", help="where the model and its inputs are")
    parser.add_argument("--config", help="the ps.json whose statistics are printed")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        report = serve(options)
    if options.config:
        report["stats"] = hps_torch.stats(options.config)
    print(json.dumps(report))


def serve(options: argparse.Namespace) -> dict[str, object]:
    """Returns the seconds of the first forward and the microseconds of the others."""
    model = torch.jit.load(options.model, map_location=options.device).eval()
    inputs = torch.load(options.inputs, map_location=options.device)
    batches = list(zip(*(tensor.split(options.batch) for tensor in inputs), strict=True))

    def forward(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        output = model(*batch)
        if output.is_cuda:
            torch.cuda.synchronize()
        return output

    # The first forward opens the store, the next ones compile the model.
    start = time.perf_counter()
    forward(batches[0])
    first = time.perf_counter() - start
    for _ in range(3):
        forward(batches[0])

    outputs, microseconds = [], []
    for repetition in range(options.repeat):
        for batch in batches:
            start = time.perf_counter()
            output = forward(batch)
            microseconds.append(1e6 * (time.perf_counter() - start))
            if repetition == 0:
                outputs.append(output)
    torch.save(torch.cat(outputs).cpu(), options.outputs)
    microseconds.sort()
    last = len(microseconds) - 1
    return {
        "first": first,
        "median": microseconds[last // 2],
        "p99": microseconds[(last * 99 + 99) // 100],
    }


if __name__ == "__main__":
    main()
