// Runs the parts of a model's graph, with weights that an offloader carries or with none.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "buffers.h"
#include "model.h"

// ggml's type as weighbridge's: block-quantized types are opaque, and move bit for bit.
wb::Layout layout_of(const ggml_tensor* tensor);

// The weights of a model under a budget. Offloaded weights stay in the mapped file.
class OffloadedWeights {
 public:
  // Plans, commits, and binds the model's tensors to the offloader's memory.
  OffloadedWeights(const Model& model, ggml_backend_t backend, const wb::Device& device,
                   std::shared_ptr<const wb::Buffer> file, uint64_t device_bytes);
  ~OffloadedWeights();

  // Gives every tensor its address again if a change moved any: once before each step.
  void rebind();
  // Makes the work that follows on the backend find the weights of a part; release ends their use.
  void acquire(int part);
  void release(int part);

  const wb::Offloader& offloader() const { return offloader_; }
  const wb::Plan& plan() const { return plan_; }
  void* stream() const { return stream_.get(); }

 private:
  static std::vector<wb::Parameter> describe(const Model& model, ggml_backend_t backend,
                                             const std::shared_ptr<const wb::Buffer>& file);

  const Model& model_;
  ggml_backend_t backend_;
  wb::Device device_;
  wb::Stream stream_;
  wb::Plan plan_;
  wb::Offloader offloader_;
  ggml_backend_event_t event_;              // null if the backend has none
  ggml_backend_buffer_t memory_ = nullptr;  // spans the offloader's device memory
  std::optional<uint64_t> generation_;
  std::vector<uint64_t> groups_;  // by part
};

// One step of a model: token ids in, logits out.
class Step {
 public:
  // `weights` may be null. With `one_graph`, acquire and release are nodes of one graph, which the
  // CPU backend computes; otherwise each part is a graph, and they are between these.
  Step(const Model& model, ggml_backend_t backend, OffloadedWeights* weights, int tokens,
       bool one_graph);
  ~Step();
  std::vector<float> run(const std::vector<int32_t>& ids);

 private:
  struct Node {
    Step* step;
    int part;
  };
  ggml_tensor* node(ggml_tensor* x, int part, ggml_custom1_op_t function);
  template <void (OffloadedWeights::*call)(int)>
  static void visit(ggml_tensor*, const ggml_tensor*, int thread, int, void* user);

  ggml_backend_t backend_;
  OffloadedWeights* weights_;
  ggml_context* context_;
  ggml_tensor *ids_, *positions_, *state_, *logits_;
  ggml_backend_buffer_t values_;  // of the tensors above
  std::vector<ggml_cgraph*> graphs_;
  std::vector<ggml_gallocr_t> scratch_;
  std::vector<Node> nodes_;
  std::exception_ptr error_;  // of a node, which cannot return one
};
