// Autograd queries torch's CUDA hooks about devices before it runs a node of a CUDA tensor. These hooks report one
// CUDA device without a context, so that a backward pass over *fake* CUDA tensors (which hold no data) runs on a
// machine without a GPU.
#include <ATen/detail/CUDAHooksInterface.h>

namespace {
struct OneDevice final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
};
}  // namespace

// Replaces the vtable of the active hooks: others cannot be registered once torch is loaded.
extern "C" void install() {
  static OneDevice replacement;
  auto& active = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  *reinterpret_cast<void**>(&active) = *reinterpret_cast<void**>(&replacement);
}
