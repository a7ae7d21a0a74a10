// Lets a torch without CUDA, or without Metal, take tensors on such a device for ordinary ones: the
// device exists, has streams that are always ready, and no kernels. Tensors that say they are on it
// compute in Python; see pretended_device.py. Loaded before torch, which asks for the hooks once.
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using namespace c10;
#ifdef PRETEND_MPS
constexpr DeviceType kind = DeviceType::MPS;
#else
constexpr DeviceType kind = DeviceType::CUDA;
#endif

struct Guard final : impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kind; }
  Device exchangeDevice(Device) const override { return Device(kind, 0); }
  Device getDevice() const override { return Device(kind, 0); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
const impl::DeviceGuardImplRegistrar registrar(kind, new Guard());

// torch 2.6 lacks some of these
#define A_DEVICE \
  void init() const {} \
  bool hasPrimaryContext(DeviceIndex) const { return true; } \
  bool isBuilt() const { return true; } \
  bool isAvailable() const { return true; } \
  DeviceIndex deviceCount() const { return 1; } \
  DeviceIndex getCurrentDevice() const { return 0; } \
  void setCurrentDevice(DeviceIndex) const {} \
  DeviceIndex exchangeDevice(DeviceIndex) const { return 0; } \
  DeviceIndex maybeExchangeDevice(DeviceIndex) const { return 0; }

#ifdef PRETEND_MPS
struct MPSHooks : at::MPSHooksInterface {
  template <class... Any>
  explicit MPSHooks(Any&&...) {}
  A_DEVICE
  bool hasMPS() const { return true; }
};
#else
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  A_DEVICE
  bool hasCUDA() const { return true; }
  int getNumGPUs() const { return 1; }
};
#endif
}  // namespace

namespace at {
#ifdef PRETEND_MPS
REGISTER_MPS_HOOKS(MPSHooks)
#else
REGISTER_CUDA_HOOKS(CUDAHooks)
#endif
}  // namespace at
