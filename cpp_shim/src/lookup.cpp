#include "lookup.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "hps-bridge/src/lib.rs.h"
#include "torch_compat.h"

namespace hps {
namespace {

using torch::stable::Tensor;
namespace compat = torch_compat;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error("hps::lookup: " + message); }

// Refuses tensors that cannot be served.
void check_placement(const Tensor& keys) {
  if (!keys.defined()) {
    fail("keys are an undefined tensor");
  }
  const int32_t type = compat::device_type(keys);
  if (type == aoti_torch_device_type_meta()) {
    fail("no fake kernel in this process: `import hps_torch` before torch.compile or torch.export");
  }
  if (type != aoti_torch_device_type_cpu() && type != aoti_torch_device_type_cuda()) {
    fail("keys are on " + compat::device_name(keys) + "; pass keys on the CPU or on a CUDA device");
  }
  if (!compat::is_dense(keys)) {
    fail("keys must be a dense tensor; this one is sparse, jagged or of another layout");
  }
}

uint32_t key_bits(const Tensor& keys) {
  const int32_t dtype = compat::dtype(keys);
  if (dtype == aoti_torch_dtype_int64()) {
    return 64;
  }
  if (dtype == aoti_torch_dtype_int32()) {
    return 32;
  }
  fail("keys must be torch.int64 or torch.int32, got " + compat::dtype_name(keys));
}

rust::Str utf8(std::string_view text, const char* argument) {
  try {
    return rust::Str(text.data(), text.size());
  } catch (const std::invalid_argument&) {
    fail(std::string(argument) + " is not valid UTF-8");
  }
}

// What a further thread is worth waking for: so many bytes of rows, or so many keys.
constexpr size_t kBytesPerThread = size_t{256} << 10;
constexpr size_t kKeysPerThread = 4096;

size_t address(const void* data) { return reinterpret_cast<size_t>(data); }

}  // namespace

Tensor lookup(const Tensor& keys, std::string_view ps_config_file, std::string_view model_name, int64_t table_id,
              int64_t emb_vec_size) {
  check_placement(keys);
  const auto table = bridge::prepare_lookup(utf8(ps_config_file, "ps_config_file"), utf8(model_name, "model_name"), table_id,
                                            emb_vec_size, key_bits(keys));
  const Tensor dense_keys = compat::contiguous(keys);
  const Tensor rows = compat::empty_rows(keys, emb_vec_size);
  const auto num_keys = static_cast<size_t>(keys.numel());
  if (compat::is_cuda(keys)) {
    // Also without keys: a device on which the model is not deployed is an error whatever the number.
    const int32_t ordinal = compat::device_index(keys);
    table->run_on_device(static_cast<size_t>(ordinal), compat::current_cuda_stream(ordinal),
                         address(num_keys > 0 ? dense_keys.const_data_ptr() : nullptr), num_keys,
                         address(num_keys > 0 ? rows.mutable_data_ptr() : nullptr));
  } else if (num_keys > 0) {
    const size_t key_bytes = key_bits(keys) / 8;
    const size_t row_bytes = static_cast<size_t>(emb_vec_size) * sizeof(float);
    compat::prefer_huge_pages(rows, num_keys * row_bytes);
    const size_t first_key = address(dense_keys.const_data_ptr());
    const size_t first_row = address(rows.mutable_data_ptr());
    const size_t keys_per_thread = std::clamp<size_t>(kBytesPerThread / std::max<size_t>(row_bytes, 1), 1, kKeysPerThread);
    compat::parallel_for(num_keys, keys_per_thread, [&](size_t begin, size_t end) {
      table->run(first_key + begin * key_bytes, end - begin, first_row + begin * row_bytes);
    });
  }
  return rows;
}

}  // namespace hps
