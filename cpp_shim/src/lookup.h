#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string_view>

namespace hps {

// Returns the rows of `keys` in one table: float32, on the CPU, of shape keys.shape + [emb_vec_size].
//
// `keys` is an int64 or int32 CPU tensor of any shape; which of the two is the table's business. Opens the store named by
// `ps_config_file` if it is not open. A key that no tier has gets the table's default row.
// Throws std::exception with a text for the user; nothing is allocated for the result before all arguments were checked.
torch::stable::Tensor lookup(const torch::stable::Tensor& keys, std::string_view ps_config_file, std::string_view model_name,
                             int64_t table_id, int64_t emb_vec_size);

}  // namespace hps
