// The command line of the example.
#pragma once

#include <cstdint>
#include <string>

struct Options {
  std::string model;     // TorchScript archive
  std::string inputs;    // file written by torch.save
  std::string outputs;   // file to write; empty: none
  int64_t batch = 1024;  // rows per forward
  int64_t repeat = 1;    // passes over the inputs; the outputs are those of the first
  int threads = 0;       // torch's threads within one forward; 0: torch's choice
};

// Throws std::runtime_error with a text for the user. Prints the usage and ends the program for --help.
Options parse_options(int argc, char** argv);
