#include "options.h"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace {

constexpr const char* kUsage =
    "Usage: serve --model FILE --inputs FILE [--outputs FILE] [--batch ROWS] [--repeat TIMES] [--threads N]\n"
    "\n"
    "Runs a TorchScript model over inputs from a file, in batches, and reports the time of the forwards.\n"
    "\n"
    "  --model FILE     archive of torch.jit.save; its lookups find their ps.json as written there, or through the\n"
    "                   environment variables HPS_CONFIG_DIR and HPS_CONFIG_FILE\n"
    "  --inputs FILE    written in Python by torch.save: a tensor, a list or tuple of tensors (the arguments of forward,\n"
    "                   in order), or a dict of tensors (by name); all have the same number of rows (dimension 0)\n"
    "  --outputs FILE   receives the model's outputs for all rows, to be read by torch.load in Python\n"
    "  --batch ROWS     rows per forward (default 1024)\n"
    "  --repeat TIMES   passes over the inputs (default 1)\n"
    "  --threads N      threads that torch uses within one forward (default: torch's choice)\n";

int64_t positive_number(const std::string& option, const std::string& text) {
  size_t used = 0;
  int64_t number = 0;
  try {
    number = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || number < 1) {
    throw std::runtime_error(option + " needs a whole number from 1 on, got '" + text + "'");
  }
  return number;
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--help" || option == "-h") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (i + 1 == argc) {
      throw std::runtime_error(option + " needs a value (see --help)");
    }
    const std::string value = argv[i + 1];
    if (option == "--model") {
      options.model = value;
    } else if (option == "--inputs") {
      options.inputs = value;
    } else if (option == "--outputs") {
      options.outputs = value;
    } else if (option == "--batch") {
      options.batch = positive_number(option, value);
    } else if (option == "--repeat") {
      options.repeat = positive_number(option, value);
    } else if (option == "--threads") {
      options.threads = static_cast<int>(positive_number(option, value));
    } else {
      throw std::runtime_error("unknown option " + option + " (see --help)");
    }
  }
  if (options.model.empty() || options.inputs.empty()) {
    throw std::runtime_error("--model and --inputs are needed (see --help)");
  }
  return options;
}
