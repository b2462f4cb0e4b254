// Serves a scripted model without Python: load, feed inputs from a file, write the outputs, report the latency.
//
// Nothing here mentions hps. The operators are there because CMakeLists.txt links hps_torch::hps_torch; a program that cannot
// be linked anew gets them by `LD_PRELOAD=.../libhps_torch.so program`, or by dlopen(".../libhps_torch.so", RTLD_NOW) before
// torch::jit::load.
#include <torch/script.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "options.h"

namespace {

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

// The arguments of the model's forward: positional, then named. Every tensor has one row per sample.
struct Inputs {
  std::vector<torch::Tensor> positional;
  std::vector<std::pair<std::string, torch::Tensor>> named;
  int64_t rows = -1;
};

void take_rows(Inputs& inputs, const torch::Tensor& tensor, const std::string& what) {
  if (tensor.dim() == 0) {
    fail(what + " has no rows: its dimension 0 must count the samples");
  }
  if (inputs.rows >= 0 && inputs.rows != tensor.size(0)) {
    fail(what + " has " + std::to_string(tensor.size(0)) + " rows, others have " + std::to_string(inputs.rows));
  }
  inputs.rows = tensor.size(0);
}

void add_positional(Inputs& inputs, const torch::IValue& value) {
  const std::string what = "input " + std::to_string(inputs.positional.size());
  if (!value.isTensor()) {
    fail(what + " is a " + value.tagKind() + ", not a tensor");
  }
  take_rows(inputs, value.toTensor(), what);
  inputs.positional.push_back(value.toTensor());
}

Inputs read_inputs(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    fail("cannot read " + path);
  }
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  torch::IValue value;
  try {
    value = torch::pickle_load(bytes);
  } catch (const c10::Error& error) {
    fail(path + " is not a file written by torch.save: " + error.what_without_backtrace());
  }

  Inputs inputs;
  if (value.isTensor()) {
    add_positional(inputs, value);
  } else if (value.isTuple()) {
    for (const torch::IValue& element : value.toTupleRef().elements()) {
      add_positional(inputs, element);
    }
  } else if (value.isList()) {
    for (const torch::IValue& element : value.toListRef()) {
      add_positional(inputs, element);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      if (!entry.key().isString() || !entry.value().isTensor()) {
        fail(path + ": a dict of inputs must map names to tensors");
      }
      take_rows(inputs, entry.value().toTensor(), "input '" + entry.key().toStringRef() + "'");
      inputs.named.emplace_back(entry.key().toStringRef(), entry.value().toTensor());
    }
  } else {
    fail(path + " holds a " + value.tagKind() + "; a tensor, a list, a tuple or a dict of tensors is needed");
  }
  if (inputs.rows <= 0) {
    fail(path + " holds no rows");
  }
  return inputs;
}

torch::IValue forward(torch::jit::Module& model, const Inputs& inputs, int64_t first, int64_t rows) {
  std::vector<torch::IValue> positional;
  for (const torch::Tensor& tensor : inputs.positional) {
    positional.emplace_back(tensor.narrow(0, first, rows));
  }
  torch::jit::Kwargs named;
  for (const auto& [name, tensor] : inputs.named) {
    named.emplace(name, tensor.narrow(0, first, rows));
  }
  return model.get_method("forward")(std::move(positional), named);
}

// The tensors of one output: a model returns one, or a tuple or list of them.
std::vector<torch::Tensor> tensors_of(const torch::IValue& output) {
  if (output.isTensor()) {
    return {output.toTensor()};
  }
  if (output.isTensorList()) {
    return output.toTensorVector();
  }
  std::vector<torch::Tensor> tensors;
  if (output.isTuple()) {
    for (const torch::IValue& element : output.toTupleRef().elements()) {
      if (!element.isTensor()) {
        fail("the model returns a tuple that holds a " + element.tagKind());
      }
      tensors.push_back(element.toTensor());
    }
    return tensors;
  }
  fail("the model returns a " + output.tagKind() + "; a tensor, or a tuple or list of tensors, is needed");
}

// Writes one tensor, or a tuple of them if the model returns several, with the rows of all batches.
void write_outputs(const std::string& path, const std::vector<std::vector<torch::Tensor>>& batches) {
  std::vector<torch::IValue> joined;
  for (size_t i = 0; i < batches.front().size(); ++i) {
    std::vector<torch::Tensor> parts;
    for (const auto& batch : batches) {
      parts.push_back(batch.at(i).detach().cpu());
    }
    joined.emplace_back(parts.front().dim() == 0 ? torch::stack(parts) : torch::cat(parts));
  }
  const torch::IValue result = joined.size() == 1 ? joined.front() : c10::ivalue::Tuple::create(std::move(joined));
  const std::vector<char> bytes = torch::pickle_save(result);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) {
    fail("cannot write " + path);
  }
}

void report(std::vector<double>& microseconds, int64_t batch, int64_t rows, int64_t repeat) {
  std::sort(microseconds.begin(), microseconds.end());
  const size_t last = microseconds.size() - 1;
  const double median = microseconds[last / 2];
  const double p99 = microseconds[(last * 99 + 99) / 100];
  double total = 0;
  for (const double time : microseconds) {
    total += time;
  }
  std::printf("%zu forwards of up to %lld rows: median %.1f us, p99 %.1f us, %.0f rows/s\n", microseconds.size(),
              static_cast<long long>(std::min(batch, rows)), median, p99,
              static_cast<double>(rows) * static_cast<double>(repeat) / total * 1e6);
}

void serve(const Options& options) {
  if (options.threads > 0) {
    torch::set_num_threads(options.threads);
  }
  const c10::InferenceMode inference;
  torch::jit::Module model;
  try {
    model = torch::jit::load(options.model);
  } catch (const c10::Error& error) {
    fail("cannot load " + options.model + ": " + error.what_without_backtrace());
  }
  model.eval();
  const Inputs inputs = read_inputs(options.inputs);

  // The first forward opens the stores, and TorchScript compiles during the next ones: they say nothing about a running server.
  const auto start = std::chrono::steady_clock::now();
  forward(model, inputs, 0, std::min(options.batch, inputs.rows));
  const std::chrono::duration<double> opening = std::chrono::steady_clock::now() - start;
  std::printf("first forward, which opens the stores: %.2f s\n", opening.count());
  for (int i = 0; i < 3; ++i) {
    forward(model, inputs, 0, std::min(options.batch, inputs.rows));
  }

  std::vector<std::vector<torch::Tensor>> outputs;
  std::vector<double> microseconds;
  for (int64_t pass = 0; pass < options.repeat; ++pass) {
    for (int64_t first = 0; first < inputs.rows; first += options.batch) {
      const auto begin = std::chrono::steady_clock::now();
      const torch::IValue output = forward(model, inputs, first, std::min(options.batch, inputs.rows - first));
      const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
      microseconds.push_back(time.count());
      if (pass == 0) {
        outputs.push_back(tensors_of(output));
      }
    }
  }
  report(microseconds, options.batch, inputs.rows, options.repeat);
  if (!options.outputs.empty()) {
    write_outputs(options.outputs, outputs);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    serve(parse_options(argc, argv));
    return 0;
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "serve: %s\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "serve: %s\n", error.what());
  }
  return 1;
}
