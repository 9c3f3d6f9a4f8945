#include "steps.h"

#include <algorithm>
#include <numeric>

#include <ggml-alloc.h>
#include <ggml-backend-impl.h>
#ifdef GGML_USE_CUDA
#include <cuda_runtime_api.h>
#endif

wb::Layout layout_of(const ggml_tensor* tensor) {
  std::vector<int64_t> shape;  // the last dimension first in ggml
  for (int axis = ggml_n_dims(tensor); axis-- > 0;) shape.push_back(tensor->ne[axis]);
  if (tensor->type == GGML_TYPE_F32) return wb::Layout::of<float>(shape);
  return wb::Layout::opaque(ggml_type_name(tensor->type), (uint32_t)ggml_blck_size(tensor->type),
                            (uint32_t)ggml_type_size(tensor->type), shape);
}

std::vector<wb::Parameter> OffloadedWeights::describe(
    const Model& model, ggml_backend_t backend, const std::shared_ptr<const wb::Buffer>& file) {
  const auto type = ggml_backend_get_default_buffer_type(backend);
  std::vector<wb::Parameter> parameters;
  for (ggml_tensor* t = ggml_get_first_tensor(model.tensors); t;
       t = ggml_get_next_tensor(model.tensors, t)) {
    if (ggml_backend_buft_get_alloc_size(type, t) != ggml_nbytes(t)) {
      throw std::runtime_error(std::string(t->name) + " has rows of " + std::to_string(t->ne[0]) +
                               " elements, behind which the backend's kernels read padding: this "
                               "example needs a multiple of 512");
    }
    wb::Parameter parameter{t->name, Model::group_of(t->name), layout_of(t)};
    parameter.source = file->bytes().data() + model.offset(t->name);
    parameter.buffer = file;
    if (Model::group_of(t->name) == "token_embd")
      parameter.access_pattern = wb::AccessPattern::Sparse;
    parameters.push_back(std::move(parameter));
  }
  return parameters;
}

static wb::PlanOptions options_for(uint64_t device_bytes) {
  wb::PlanOptions options{wb::Budget::device_bytes(device_bytes)};
  options.host_store = wb::HostStore::Source;
  return options;
}

OffloadedWeights::OffloadedWeights(const Model& model, ggml_backend_t backend,
                                   const wb::Device& device, std::shared_ptr<const wb::Buffer> file,
                                   uint64_t device_bytes)
    : model_(model),
      backend_(backend),
      device_(device.share()),
      stream_(wb::Stream::make(device).value()),
      plan_(wb::Plan::make(device, describe(model, backend, file), options_for(device_bytes))
                .value()),
      offloader_(wb::Offloader::make(plan_, stream_.get()).value()) {
  event_ = ggml_backend_event_new(ggml_backend_get_device(backend));
  for (int part = 0; part < Model::parts; part++) {
    groups_.push_back(offloader_.find_group(Model::group_name(part)).value());
  }
  rebind();
}

OffloadedWeights::~OffloadedWeights() {
  ggml_backend_synchronize(backend_);
  ggml_backend_event_free(event_);
  ggml_backend_buffer_free(memory_);
}

void OffloadedWeights::rebind() {
  const uint64_t generation = offloader_.get_generation().value();
  if (generation_ == generation) return;
  const auto infos = offloader_.get_parameter_infos().value();
  uintptr_t first = UINTPTR_MAX, end = 0;
  for (const auto& info : infos) {
    const auto address = reinterpret_cast<uintptr_t>(info.device_address);
    first = std::min(first, address);
    end = std::max(end, address + info.span_bytes);
  }
  ggml_backend_buffer_free(memory_);
  memory_ =
      buffer_over(backend_, device_, reinterpret_cast<void*>(first), end - first, nullptr, true);
  for (const auto& info : infos) {
    ggml_tensor* tensor = model_.tensor(info.name);
    tensor->buffer = nullptr;
    tensor->data = nullptr;
    ggml_backend_tensor_alloc(memory_, tensor, info.device_address);
  }
  generation_ = generation;
}

// ggml's CUDA backend has a stream of its own: an event orders it with the offloader's. The CPU
// backend has no events and computes on the calling thread, which waits.
void OffloadedWeights::acquire(int part) {
  offloader_.acquire_group(groups_[(size_t)part], stream_.get()).value();
#ifdef GGML_USE_CUDA
  if (const auto event = event_) {
    cudaEventRecord(static_cast<cudaEvent_t>(event->context),
                    static_cast<cudaStream_t>(stream_.get()));
    ggml_backend_event_wait(backend_, event);
    return;
  }
#endif
  stream_.synchronize().value();
}

void OffloadedWeights::release(int part) {
#ifdef GGML_USE_CUDA
  if (const auto event = event_) {
    ggml_backend_event_record(event, backend_);
    cudaStreamWaitEvent(static_cast<cudaStream_t>(stream_.get()),
                        static_cast<cudaEvent_t>(event->context), 0);
  }
#endif
  offloader_.release_group(groups_[(size_t)part], stream_.get()).value();
}

Step::Step(const Model& model, ggml_backend_t backend, OffloadedWeights* weights, int tokens,
           bool one_graph)
    : backend_(backend), weights_(weights) {
  context_ = ggml_init({size_t{4} << 20, nullptr, true});
  ids_ = ggml_new_tensor_1d(context_, GGML_TYPE_I32, tokens);
  positions_ = ggml_new_tensor_1d(context_, GGML_TYPE_I32, tokens);
  state_ = ggml_new_tensor_2d(context_, GGML_TYPE_F32, Model::width, tokens);
  logits_ = ggml_new_tensor_2d(context_, GGML_TYPE_F32, Model::vocabulary, tokens);
  values_ = ggml_backend_alloc_ctx_tensors(context_, backend);
  std::vector<int32_t> positions((size_t)tokens);
  std::iota(positions.begin(), positions.end(), 0);
  ggml_backend_tensor_set(positions_, positions.data(), 0, ggml_nbytes(positions_));

  nodes_.reserve(2 * Model::parts);
  ggml_tensor* x = ids_;
  for (int part = 0; part < Model::parts; part++) {
    if (one_graph) x = node(x, part, visit<&OffloadedWeights::acquire>);
    x = model.build(context_, part, x, positions_);
    if (one_graph) x = node(x, part, visit<&OffloadedWeights::release>);
    const bool last = part + 1 == Model::parts;
    if (last || !one_graph) {
      graphs_.push_back(ggml_new_graph(context_));
      ggml_build_forward_expand(graphs_.back(), ggml_cpy(context_, x, last ? logits_ : state_));
      scratch_.push_back(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
      ggml_gallocr_alloc_graph(scratch_.back(), graphs_.back());
      x = state_;
    }
  }
}

Step::~Step() {
  for (ggml_gallocr_t scratch : scratch_) ggml_gallocr_free(scratch);
  ggml_backend_buffer_free(values_);
  ggml_free(context_);
}

// A node that computes nothing: what depends on its result runs after it.
ggml_tensor* Step::node(ggml_tensor* x, int part, ggml_custom1_op_t function) {
  if (!weights_) return x;
  nodes_.push_back({this, part});
  return ggml_map_custom1_inplace(context_, x, function, 1, &nodes_.back());
}

template <void (OffloadedWeights::*call)(int)>
void Step::visit(ggml_tensor*, const ggml_tensor*, int thread, int, void* user) {
  const Node& node = *static_cast<Node*>(user);
  if (thread != 0 || node.step->error_) return;
  try {
    (node.step->weights_->*call)(node.part);
  } catch (...) {
    node.step->error_ = std::current_exception();
  }
}

std::vector<float> Step::run(const std::vector<int32_t>& ids) {
  if (weights_) weights_->rebind();
  ggml_backend_tensor_set(ids_, ids.data(), 0, ggml_nbytes(ids_));
  const bool one_graph = graphs_.size() == 1;
  for (size_t part = 0; part < graphs_.size(); part++) {
    if (weights_ && !one_graph) weights_->acquire((int)part);
    if (ggml_backend_graph_compute_async(backend_, graphs_[part]) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("ggml failed to compute a graph");
    }
    if (weights_ && !one_graph) weights_->release((int)part);
  }
  ggml_backend_synchronize(backend_);
  if (error_) {
    weights_->offloader().reset(weights_->stream()).value();
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
  std::vector<float> logits((size_t)ggml_nelements(logits_));
  ggml_backend_tensor_get(logits_, logits.data(), 0, ggml_nbytes(logits_));
  return logits;
}
