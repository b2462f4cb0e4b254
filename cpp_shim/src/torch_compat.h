// The only file that knows the odd corners of torch's stable C interface. Everything here works with torch 2.10 or newer.
//
// Torch's functions return a code and keep their message to themselves, and torch's own checks put C++ file and line in front
// of every message. Users should see neither, so failures become std::runtime_error with a text of ours.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace hps::torch_compat {

using torch::stable::Tensor;

inline void check(AOTITorchError code, const std::string& task) {
  if (code != TORCH_SUCCESS) {
    throw std::runtime_error("hps: torch could not " + task);
  }
}

// Operators of one namespace. STABLE_TORCH_LIBRARY is not used because, depending on the torch it is compiled with, it either
// ignores errors of registration or ends the process with them.
class OpLibrary {
 public:
  explicit OpLibrary(const char* ns) : ns_(ns) {
    check(aoti_torch_library_init_def(ns, "libhps_torch.so", 0, &definitions_), "claim the operator namespace " + ns_);
    const AOTITorchError code =
        aoti_torch_library_init_impl(ns, "CompositeExplicitAutograd", "libhps_torch.so", 0, &kernels_);
    if (code != TORCH_SUCCESS) {
      aoti_torch_delete_library_object(definitions_);
    }
    check(code, "open the operator namespace " + ns_);
  }

  // Takes the operators back unless keep() was called.
  ~OpLibrary() {
    if (!kept_) {
      aoti_torch_delete_library_object(kernels_);
      aoti_torch_delete_library_object(definitions_);
    }
  }

  OpLibrary(const OpLibrary&) = delete;
  OpLibrary& operator=(const OpLibrary&) = delete;

  void def(const char* schema) { check(aoti_torch_library_def(definitions_, schema), "define " + ns_ + "::" + schema); }

  // One kernel for every device: tensors on a device that is not served arrive too, and get a message of ours.
  void impl(const char* name, void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
    check(torch_library_impl(kernels_, name, kernel, TORCH_ABI_VERSION), "implement " + ns_ + "::" + name);
  }

  // Leaves the operators registered until the process ends; the library is never unloaded (-z nodelete).
  void keep() { kept_ = true; }

 private:
  std::string ns_;
  TorchLibraryHandle definitions_ = nullptr;
  TorchLibraryHandle kernels_ = nullptr;
  bool kept_ = false;
};

inline int32_t device_type(const Tensor& tensor) {
  int32_t type = 0;
  check(aoti_torch_get_device_type(tensor.get(), &type), "tell the device of a tensor");
  return type;
}

// As Python writes it, for instance "cuda:0".
inline std::string device_name(const Tensor& tensor) {
  const int32_t type = device_type(tensor);
  std::string name = type == aoti_torch_device_type_cpu()           ? "cpu"
                     : type == aoti_torch_device_type_cuda()        ? "cuda"
                     : type == aoti_torch_device_type_meta()        ? "meta"
                     : type == aoti_torch_device_type_xpu()         ? "xpu"
                     : type == aoti_torch_device_type_mps()         ? "mps"
                     : type == aoti_torch_device_type_privateuse1() ? "privateuse1"
                                                                    : "device type " + std::to_string(type);
  int32_t index = -1;
  check(aoti_torch_get_device_index(tensor.get(), &index), "tell the device of a tensor");
  return index < 0 ? name : name + ":" + std::to_string(index);
}

inline int32_t dtype(const Tensor& tensor) {
  int32_t code = 0;
  check(aoti_torch_get_dtype(tensor.get(), &code), "tell the dtype of a tensor");
  return code;
}

// As Python writes it, for instance "torch.float32".
inline std::string dtype_name(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  ScalarType type = ScalarType::Undefined;
  try {
    type = tensor.scalar_type();
  } catch (const std::exception&) {
    return "a dtype without a stable name";  // quantized ones, for instance
  }
  switch (type) {
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::UInt16: return "torch.uint16";
    case ScalarType::UInt32: return "torch.uint32";
    case ScalarType::UInt64: return "torch.uint64";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::Bool: return "torch.bool";
    case ScalarType::ComplexHalf: return "torch.complex32";
    case ScalarType::ComplexFloat: return "torch.complex64";
    case ScalarType::ComplexDouble: return "torch.complex128";
    default: return std::string("torch's ") + torch::headeronly::toString(type);
  }
}

inline bool is_dense(const Tensor& tensor) {
  int32_t layout = 0;
  check(aoti_torch_get_layout(tensor.get(), &layout), "tell the layout of a tensor");
  return layout == aoti_torch_layout_strided();
}

// The tensor itself if its elements already lie one after the other.
inline Tensor contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous()) {
    return tensor;
  }
  try {
    return torch::stable::contiguous(tensor);
  } catch (const std::exception&) {
    throw std::runtime_error("hps: torch could not make " + std::to_string(tensor.numel()) +
                             " keys contiguous (out of memory?)");
  }
}

inline bool is_cuda(const Tensor& tensor) { return device_type(tensor) == aoti_torch_device_type_cuda(); }

// The ordinal of a CUDA tensor's device.
inline int32_t device_index(const Tensor& tensor) {
  int32_t index = -1;
  check(aoti_torch_get_device_index(tensor.get(), &index), "tell the device of a tensor");
  return index;
}

// Torch's current stream on a CUDA device. Only a CUDA build of libtorch has the function, so it is looked for when there is a
// CUDA tensor: whoever made one has loaded the library.
inline size_t current_cuda_stream(int32_t device_index) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  if (function == nullptr) {
    throw std::runtime_error("hps: keys are on a GPU, but libtorch_cuda.so of this process cannot tell torch's stream");
  }
  void* stream = nullptr;
  check(function(device_index, &stream), "tell the current stream of cuda:" + std::to_string(device_index));
  return reinterpret_cast<size_t>(stream);
}

// A float32 tensor of shape `leading + [last]` on the device of `leading`, its contents unspecified. Asks torch's allocator directly: the operator
// aten::empty would cost a second trip through the dispatcher.
inline Tensor empty_rows(const Tensor& leading, int64_t last) {
  const auto sizes_before = leading.sizes();
  std::vector<int64_t> sizes(sizes_before.begin(), sizes_before.end());
  sizes.push_back(last);

  const int64_t limit = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(float));
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    const int64_t size = sizes[i] > 1 ? sizes[i] : 1;
    if (size > limit / stride) {
      throw std::runtime_error("hps: a result of " + std::to_string(leading.numel()) + " rows of " + std::to_string(last) +
                               " float32 values is larger than the address space");
    }
    stride *= size;
  }

  AtenTensorHandle handle = nullptr;
  const bool on_gpu = is_cuda(leading);
  const AOTITorchError code = aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), aoti_torch_dtype_float32(),
      on_gpu ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(), on_gpu ? device_index(leading) : 0, &handle);
  if (code != TORCH_SUCCESS) {
    check(code, "allocate " + std::to_string(leading.numel()) + " rows of " + std::to_string(last) + " float32 values (" +
                    (on_gpu ? "out of GPU memory? or device lost by an earlier CUDA error: then restart the process)"
                            : "out of memory?)"));
  }
  return Tensor(handle);
}

// Calls body(begin, end) for pieces of 0..count, at the same time on as many threads as torch.set_num_threads allows; on the
// calling thread alone if there are at most `grain`. When all have ended, the first exception is thrown again: torch would
// replace it by a code.
template <typename Body>
void parallel_for(size_t count, size_t grain, const Body& body) {
  if (count <= grain) {
    body(size_t{0}, count);
    return;
  }
  struct Context {
    const Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } context{body, {}, nullptr};
  const auto piece = [](int64_t begin, int64_t end, void* pointer) {
    auto& shared = *static_cast<Context*>(pointer);
    try {
      shared.body(static_cast<size_t>(begin), static_cast<size_t>(end));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(shared.mutex);
      if (!shared.error) {
        shared.error = std::current_exception();
      }
    }
  };
  check(torch_parallel_for(0, static_cast<int64_t>(count), static_cast<int64_t>(grain), piece, &context),
        "run a lookup on several threads");
  if (context.error) {
    std::rethrow_exception(context.error);
  }
}

// Asks for huge pages behind a CPU tensor that is about to be written for the first time: the system then clears 2 MB at a time
// instead of stopping us every 4 KB. Only where the tensor has a mapping of its own, which malloc makes from 32 MiB on and gives
// back with the tensor; smaller ones lie among others, in memory that is there already.
inline void prefer_huge_pages(const Tensor& tensor, size_t num_bytes) {
  constexpr size_t kOwnMapping = size_t{32} << 20;
  constexpr size_t kPage = 4096;
  if (num_bytes < kOwnMapping) {
    return;
  }
  const auto begin = (reinterpret_cast<size_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<size_t>(tensor.mutable_data_ptr()) + num_bytes) / kPage * kPage;
  // Advice: where the system does not take it, all is as before.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace hps::torch_compat
