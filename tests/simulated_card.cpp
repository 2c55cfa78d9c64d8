// A CUDA device for a build of torch without CUDA: its memory is the host's, and every operation is the CPU's.
//
// A tensor here is one of the host's that says it lies on cuda:0. An operation on such tensors is done on aliases of
// them, CPU tensors over the same memory, and its results are given back as the card's; so views stay views, and what
// is written is seen everywhere. Memory is counted as an allocator of the card would, up to a limit. Tensors of two
// devices are refused where CUDA refuses them; with card_warn, operations for which CUDA lets the host wait are told.
#include <ATen/ATen.h>
#include <ATen/core/stack.h>
#include <torch/library.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <atomic>
#include <mutex>
#include <set>
#include <unordered_map>

namespace {
using at::Tensor;
const c10::Device kCard(c10::DeviceType::CUDA, 0);

std::atomic<int64_t> allocated{0}, peak{0}, reserved{0}, limit{int64_t(1) << 50}, n_failed{0};
std::atomic<bool> warns{false};
std::mutex guard;
std::set<const void*> pinned;

void take(int64_t n) {
  n = (n + 511) / 512 * 512;
  int64_t now = allocated += n;
  if (now > limit) {
    allocated -= n;
    n_failed += 1;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", n, " bytes (simulated).");
  }
  if (now > peak) peak = now;
  if (now > reserved) reserved = now;
}
void give(int64_t n) { allocated -= (n + 511) / 512 * 512; }

struct Held { c10::Storage storage; int64_t n; };
void drop(void* context) { auto* held = static_cast<Held*>(context); give(held->n); delete held; }
void forget(void* context) { delete static_cast<c10::Storage*>(context); }

struct CardAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    take(int64_t(n));
    c10::DataPtr host = c10::GetAllocator(c10::kCPU)->allocate(n);
    void* data = host.get();
    auto* held = new Held{c10::Storage(c10::Storage::use_byte_size_t(), n, std::move(host), nullptr, false), int64_t(n)};
    return {data, held, &drop, kCard};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} card_allocator;

struct PinnedAllocator final : c10::Allocator {
  static void unpin(void* data) {
    { std::lock_guard<std::mutex> lock(guard); pinned.erase(data); }
    std::free(data);
  }
  c10::DataPtr allocate(size_t n) override {
    void* data = nullptr;
    TORCH_CHECK(posix_memalign(&data, 64, n ? n : 64) == 0, "no memory");
    std::lock_guard<std::mutex> lock(guard);
    pinned.insert(data);
    return {data, data, &unpin, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} pinned_allocator;

bool is_pinned(const Tensor& t) {
  std::lock_guard<std::mutex> lock(guard);
  return pinned.count(t.storage().data()) > 0;
}

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> lock(guard);
    return pinned.count(data) > 0;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  c10::Allocator* getCUDADeviceAllocator() const override { return &card_allocator; }
  c10::Device getDeviceFromPtr(void*) const override { return kCard; }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kCard; }
  c10::Device getDevice() const override { return kCard; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kCard); }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(kCard); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(kCard); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};

c10::DispatchKeySet moved(c10::DispatchKeySet keys, c10::BackendComponent from, c10::BackendComponent to) {
  return keys.remove_backend(from) | c10::DispatchKeySet(to);
}

Tensor over(c10::Storage storage, const Tensor& like, c10::DispatchKeySet keys) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(storage), keys, like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

c10::Storage on_card(const c10::Storage& host) {
  auto n = int64_t(host.nbytes());
  take(n);
  auto* held = new Held{host, n};
  return c10::Storage(c10::Storage::use_byte_size_t(), n,
                      c10::DataPtr(const_cast<void*>(host.data()), held, &drop, kCard), &card_allocator, true);
}

struct Aliases {
  std::unordered_map<c10::TensorImpl*, std::pair<Tensor, Tensor>> tensors;  // host alias -> (card, host alias)
  std::unordered_map<c10::TensorImpl*, Tensor> by_card;
  std::unordered_map<c10::StorageImpl*, std::pair<c10::Storage, void*>> storages;  // host storage -> (card's, address)
  std::unordered_map<c10::StorageImpl*, c10::Storage> host_of;
  bool saw_card = false, saw_host = false;

  Tensor in(const Tensor& t) {
    if (!t.defined()) return t;
    if (!t.is_cuda()) { if (t.dim() > 0 && t.numel() > 0) saw_host = true; return t; }
    saw_card = true;
    auto found = by_card.find(t.unsafeGetTensorImpl());
    if (found != by_card.end()) return found->second;
    auto* own = t.storage().unsafeGetStorageImpl();
    if (!host_of.count(own)) {
      c10::DataPtr data(const_cast<void*>(t.storage().data()), new c10::Storage(t.storage()), &forget, c10::Device(c10::kCPU));
      c10::Storage host(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), c10::GetAllocator(c10::kCPU), true);
      storages.emplace(host.unsafeGetStorageImpl(), std::make_pair(t.storage(), const_cast<void*>(t.storage().data())));
      host_of.emplace(own, host);
    }
    Tensor made = over(host_of.at(own), t, moved(t.key_set(), c10::BackendComponent::CUDABit, c10::BackendComponent::CPUBit));
    if (t.is_conj()) made._set_conj(true);
    if (t.is_neg()) made._set_neg(true);
    tensors.emplace(made.unsafeGetTensorImpl(), std::make_pair(t, made));
    by_card.emplace(t.unsafeGetTensorImpl(), made);
    return made;
  }
  void settle() {  // what was resized or set under an alias is so on the card, too
    for (auto& [impl, pair] : tensors) {
      auto& [card, host] = pair;
      auto* storage = host.storage().unsafeGetStorageImpl();
      auto known = storages.find(storage);
      if (known == storages.end()) {
        card.unsafeGetTensorImpl()->set_storage_keep_dtype(on_card(host.storage()));
      } else if (host.storage().data() != known->second.second) {
        c10::Storage fresh = on_card(host.storage());
        auto* target = known->second.first.unsafeGetStorageImpl();
        auto n = fresh.nbytes();
        target->set_data_ptr(fresh.set_data_ptr(c10::DataPtr()));
        target->set_nbytes(n);
        known->second.second = const_cast<void*>(host.storage().data());
      }
      if (card.sizes() != host.sizes() || card.strides() != host.strides() || card.storage_offset() != host.storage_offset())
        card.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }
  Tensor out(const Tensor& t) {
    if (!t.defined() || t.is_cuda()) return t;
    auto same = tensors.find(t.unsafeGetTensorImpl());
    if (same != tensors.end()) return same->second.first;
    auto view = storages.find(t.storage().unsafeGetStorageImpl());
    if (view != storages.end()) return over(view->second.first, t, moved(t.key_set(), c10::BackendComponent::CPUBit, c10::BackendComponent::CUDABit));
    c10::Storage fresh = on_card(t.storage());
    storages.emplace(t.storage().unsafeGetStorageImpl(), std::make_pair(fresh, const_cast<void*>(t.storage().data())));
    auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(fresh), c10::DispatchKeySet(c10::DispatchKey::CUDA), t.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
    return made;
  }
};

const std::set<std::string> kMayMix = {"aten::copy_", "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_",
                                       "aten::index_put", "aten::set_"};
const std::set<std::string> kWait = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero",
                                     "aten::masked_select", "aten::_unique2", "aten::unique_consecutive"};

// A tensor, or a list of them, each as `change` gives it; any other value as it is.
template <class Change>
c10::IValue with_tensors(const c10::IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (!value.isTensorList()) return value;
  std::vector<Tensor> list;
  for (const auto& each : value.toTensorVector()) list.push_back(change(each));
  return c10::IValue(list);
}

void on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto n_args = schema.arguments().size();
  const auto name = schema.name();
  const auto first = stack->size() - n_args;
  Aliases seen;
  bool from_card = false, to_card = false, blocking = true;
  if (name == "aten::copy_") {
    const auto& to = (*stack)[first].toTensor();
    const auto& from = (*stack)[first + 1].toTensor();
    from_card = from.is_cuda() && !to.is_cuda();
    to_card = to.is_cuda() && !from.is_cuda() && from.numel() > 0;
    blocking = !(*stack)[first + 2].toBool() || !is_pinned(from_card ? to : from);
  }
  bool host_index = false;
  for (size_t i = 0; i < n_args; ++i) {
    auto& value = (*stack)[first + i];
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& each : value.toOptionalTensorVector()) {
        if (each.has_value() && each->defined() && !each->is_cuda()) host_index = true;
        list.push_back(each.has_value() ? std::optional<Tensor>(seen.in(*each)) : std::nullopt);
      }
      value = c10::IValue(list);
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = c10::IValue(c10::Device(c10::kCPU));
    } else {
      value = with_tensors(value, [&](const Tensor& t) { return seen.in(t); });
    }
  }
  TORCH_CHECK(!(seen.saw_card && seen.saw_host) || kMayMix.count(name),
              "Expected all tensors to be on the same device, but ", name, " got cuda:0 and cpu");
  if (kWait.count(name) || (from_card && blocking) || (to_card && blocking) || host_index) {
    if (warns) TORCH_WARN("called a synchronizing CUDA operation");
  }
  { at::AutoDispatchBelowADInplaceOrView below; op.callBoxed(stack); }
  seen.settle();
  for (auto i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = with_tensors((*stack)[i], [&](const Tensor& t) { return seen.out(t); });
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &card_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(at::kFloat), format);
}
Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &card_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), dtype.value_or(at::kFloat));
}
Tensor mm_to(const Tensor& a, const Tensor& b, at::ScalarType to) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type() && (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16) && to == at::kFloat,
              "out_dtype takes 16-bit factors and float32");
  Aliases seen;
  return seen.out(at::mm(seen.in(a).to(to), seen.in(b).to(to)));
}
Tensor depthwise(const Tensor& x, const Tensor& weight, at::IntArrayRef, const std::optional<Tensor>& bias,
                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  Aliases seen;
  std::optional<Tensor> added;
  if (bias.has_value() && bias->defined()) added = seen.in(*bias);
  return seen.out(at::conv2d(seen.in(x), seen.in(weight), added, stride, padding, dilation, x.size(1)));
}
Tensor histc(const Tensor& t, int64_t bins, const at::Scalar& low, const at::Scalar& high) {
  Aliases seen;  // whole numbers have such a kernel on CUDA alone
  return seen.out(at::histc(seen.in(t).to(at::kDouble), bins, low, high).to(t.scalar_type()));
}
std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(const Tensor& q, const Tensor& k, const Tensor& v,
    const std::optional<Tensor>& bias, bool, double dropout, bool causal, std::optional<double> scale) {
  TORCH_CHECK(q.scalar_type() != at::kDouble, "no kernel for float64");
  TORCH_CHECK(q.size(1) == k.size(1) && k.size(1) == v.size(1), "no grouped heads in this kernel");
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK(bias->scalar_type() == q.scalar_type(), "bias must have the query's type");
    TORCH_CHECK(bias->dim() == 4 && bias->stride(3) == 1 && bias->stride(2) % 8 == 0, "attn_bias is not aligned");
  }
  Aliases seen;
  std::optional<Tensor> mask;
  if (bias.has_value() && bias->defined()) mask = seen.in(*bias);
  Tensor made = at::scaled_dot_product_attention(seen.in(q), seen.in(k), seen.in(v), mask, dropout, causal, scale, false);
  Tensor empty_one = at::empty({0}, made.options());
  return {seen.out(made.contiguous()), seen.out(empty_one), seen.out(at::empty({0}, made.options())), seen.out(at::empty({0}, made.options()))};
}
}  // namespace

namespace at { C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, ::Hooks) }
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, ::Guard) }

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&on_host>());
  m.impl("mm.dtype", TORCH_FN(mm_to));
  m.impl("_conv_depthwise2d", TORCH_FN(depthwise));
  m.impl("histc", TORCH_FN(histc));
  m.impl("_scaled_dot_product_efficient_attention", TORCH_FN(efficient));
}


extern "C" {
void card_begin() { c10::SetAllocator(c10::DeviceType::CUDA, &card_allocator); }
void card_limit(int64_t n) { limit = n; }
void card_warn(int on) { warns = on != 0; }
void card_reset_peak() { peak = allocated.load(); }
void card_forget_failures() { n_failed = 0; }
void card_release() { reserved = allocated.load(); }
int64_t card_count(const char* what) {
  const std::string name(what);
  return name == "allocated" ? allocated : name == "peak" ? peak : name == "reserved" ? reserved : n_failed;
}
}
