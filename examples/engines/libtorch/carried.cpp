#include "carried.h"

#include <ATen/DLConvertor.h>
#include <c10/core/impl/VirtualGuardImpl.h>

TorchStream::TorchStream(const wb::Device& device, torch::Device where) : where_(where) {
  if (where.is_cpu()) host_ = wb::Stream::make(device).value();
}

void* TorchStream::get() const {
  if (where_.is_cpu()) return host_.get();
  return c10::impl::VirtualGuardImpl(where_.type()).getStream(where_).native_handle();
}

void TorchStream::before_torch() const {
  if (where_.is_cpu()) host_.synchronize().value();
}

wb::Layout layout_of(const torch::Tensor& tensor) {
  if (tensor.scalar_type() != torch::kFloat) {
    throw std::runtime_error("this example knows float32 alone; found " +
                             std::string(tensor.dtype().name()));
  }
  wb::Layout layout = wb::Layout::of<float>(tensor.sizes().vec());
  layout.strides = tensor.strides().vec();
  return layout;
}

static std::vector<wb::Parameter> describe(const torch::nn::Sequential& model) {
  std::vector<wb::Parameter> parameters;
  for (const auto& item : model->named_parameters()) {
    const std::string group = item.key().substr(0, item.key().find('.'));  // of "3.weight": "3"
    parameters.push_back({item.key(), group, layout_of(item.value()), item.value().data_ptr()});
  }
  return parameters;
}

CarriedSequential::CarriedSequential(torch::nn::Sequential model, const wb::Device& device,
                                     torch::Device where, const wb::PlanOptions& options)
    : model_(std::move(model)),
      stream_(device, where),
      plan_(wb::Plan::make(device, describe(model_), options).value()),
      offloader_(wb::Offloader::make(plan_, stream_.get()).value()) {
  rebind();
}

// A tensor over a parameter's memory, which the tensor's storage keeps: of a slot, it has the
// parameter's bytes while its group is acquired.
void CarriedSequential::rebind() {
  const auto generation = offloader_.get_generation().value();
  if (generation_ == generation) return;
  torch::NoGradGuard no_grad;
  for (auto& item : model_->named_parameters()) {
    const auto index = offloader_.find_parameter(item.key()).value();
    auto tensor = offloader_.get_view(index).value().to_dlpack_for_reading().value();
    item.value().set_data(at::fromDLPack(tensor.release()));
  }
  generation_ = generation;
}

torch::Tensor CarriedSequential::forward(torch::Tensor x) {
  rebind();
  std::uint64_t at = 0;
  for (auto& module : *model_) {
    const auto group = offloader_.find_group(std::to_string(at++));
    if (!group) {  // without parameters, such as an activation
      x = module.any_forward(x).get<torch::Tensor>();
      continue;
    }
    const auto acquired = wb::AcquiredGroup::make(offloader_, group.value(), stream_.get()).value();
    stream_.before_torch();
    x = module.any_forward(x).get<torch::Tensor>();
  }
  return x;
}
