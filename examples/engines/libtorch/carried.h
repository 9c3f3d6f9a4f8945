// A torch::nn::Sequential whose weights are carried by weighbridge.
#pragma once

#include <optional>

#include <torch/torch.h>
#include <weighbridge.hpp>

namespace wb = weighbridge;

// The stream on which torch runs a device's work now; of "cpu", which computes on the calling
// thread, a stream of weighbridge.
class TorchStream {
 public:
  TorchStream(const wb::Device& device, torch::Device where);
  void* get() const;
  // Makes torch's next work come after queued work: the calling thread waits for a host's
  // stream.
  void before_torch() const;

 private:
  torch::Device where_;
  wb::Stream host_;
};

// Plans and commits the parameters of the modules of `model`, a group each, and makes the
// parameters tensors over the offloader's memory. The model must not be called but by forward().
class CarriedSequential {
 public:
  CarriedSequential(torch::nn::Sequential model, const wb::Device& device, torch::Device where,
                    const wb::PlanOptions& options);
  torch::Tensor forward(torch::Tensor x);

  const wb::Offloader& offloader() const { return offloader_; }
  const wb::Plan& plan() const { return plan_; }
  void* stream() const { return stream_.get(); }

 private:
  void rebind();

  torch::nn::Sequential model_;
  TorchStream stream_;
  wb::Plan plan_;
  wb::Offloader offloader_;
  std::optional<std::uint64_t> generation_;
};

wb::Layout layout_of(const torch::Tensor& tensor);
