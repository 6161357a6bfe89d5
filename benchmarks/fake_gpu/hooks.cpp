// Autograd asks torch's CUDA hooks about devices before it runs a node of a CUDA tensor. These hooks answer as a
// machine with one CUDA device would that nobody has used yet, so that a backward pass over *fake* CUDA tensors
// (which hold no data) runs on a machine without a GPU.
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

// Replaces the virtual table of the hooks in use: there is no way to register others once torch is loaded.
extern "C" void install() {
  static OneDevice ours;
  auto& theirs = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  *reinterpret_cast<void**>(&theirs) = *reinterpret_cast<void**>(&ours);
}
