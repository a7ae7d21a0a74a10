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
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, Device(kind, 0)); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
const impl::DeviceGuardImplRegistrar registrar(kind, new Guard());

#define A_DEVICE \
  void init() const override {} \
  bool hasPrimaryContext(DeviceIndex) const override { return true; } \
  bool isBuilt() const override { return true; } \
  bool isAvailable() const override { return true; } \
  DeviceIndex deviceCount() const override { return 1; } \
  DeviceIndex getCurrentDevice() const override { return 0; } \
  void setCurrentDevice(DeviceIndex) const override {} \
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; } \
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }

#ifdef PRETEND_MPS
struct MPSHooks : at::MPSHooksInterface {
  A_DEVICE
  bool hasMPS() const override { return true; }
};
#else
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  A_DEVICE
  bool hasCUDA() const override { return true; }
  int getNumGPUs() const override { return 1; }
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
