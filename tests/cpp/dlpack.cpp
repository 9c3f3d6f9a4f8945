// DLPack tensors, out and in.
#include "dlpack_structs.hpp"

#include "fixtures.hpp"

using namespace weighbridge;

constexpr int cpu = 1, cuda = 2;

/// A tensor of ours, two floats by three; it counts the calls of its deleter.
template <class Tensor>
struct Source {
  fixtures::Memory memory = fixtures::pages(1);
  int64_t shape[2] = {2, 3};
  int deleted = 0;
  Tensor tensor{};

  Source() {
    tensor.dl_tensor = {memory.get(), {cpu, 0}, 2, {2, 32, 1}, shape, nullptr, 0};
    tensor.manager_ctx = this;
    tensor.deleter = [](Tensor* self) { ++static_cast<Source*>(self->manager_ctx)->deleted; };
  }
};

TEST("an exported tensor shows the view, and holds it until its deleter is called") {
  const Device device = fixtures::open();
  {
    Buffer buffer = Buffer::alloc(device, 24).value();
    View view = View::make(buffer, Layout::of<float>({2, 3})).value();
    const wb_view_info info = view.get_info().value();
    DlpackTensor tensor = view.to_dlpack().value();
    const DLTensor& shown = tensor->dl_tensor;
    const bool on_cuda = device.get_info().value().kind == WB_DEVICE_CUDA;
    CHECK(shown.device.device_type == (on_cuda ? cuda : cpu));
    CHECK(static_cast<char*>(shown.data) + shown.byte_offset ==
          (on_cuda ? info.device_address : info.data));
    CHECK(shown.ndim == 2 && shown.shape[0] == 2 && shown.shape[1] == 3);
    CHECK(shown.dtype.code == 2 && shown.dtype.bits == 32 && shown.dtype.lanes == 1);
    view.release();
    buffer.release();
    CHECK(device.get_stats().value().buffers == 1);
    DlpackTensor moved = std::move(tensor);
    CHECK(!tensor);
    CHECK(moved->dl_tensor.shape[1] == 3);
  }
  fixtures::check_nothing_left(device);
}

TEST("a tensor handed to a consumer goes by the consumer's call of its deleter") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 24).value();
  const View view = View::make(buffer, Layout::of<float>({6}), Accessor::Host).value();
  DLManagedTensor* taken = view.to_dlpack().value().release();
  CHECK(taken->dl_tensor.device.device_type == cpu);
  taken->deleter(taken);
  CHECK(device.drain(std::chrono::seconds(10)));
  CHECK(device.get_stats().value().views == 1);
}

TEST("a versioned tensor says that it is read-only") {
  const Device device = fixtures::open();
  const fixtures::File file("0123456789abcdef");
  const Buffer buffer = Buffer::map_file(device, file.path()).value();
  const View view = View::make(buffer, Layout::of<std::uint8_t>({16}), Accessor::Host).value();
  const DlpackTensorVersioned tensor = view.to_dlpack_versioned().value();
  CHECK(tensor->version.major == 1);
  CHECK((tensor->flags & 1) == 1);
}

template <class Tensor, class Owned>
static void check_import(const Device& device) {
  Source<Tensor> source;
  Owned owned(&source.tensor);
  {
    const View view = View::from_dlpack(device, std::move(owned)).value();
    CHECK(!owned);
    const auto elements = view.template as<float>().value();
    CHECK(elements.size() == 6);
    CHECK(static_cast<void*>(elements.data()) == source.memory.get());
    CHECK(source.deleted == 0);
  }
  CHECK(device.drain(std::chrono::seconds(10)));
  CHECK(source.deleted == 1);
}

TEST("an imported tensor is owned by the view, and deleted once") {
  const Device device = fixtures::open();
  check_import<DLManagedTensor, DlpackTensor>(device);
  fixtures::check_nothing_left(device);
}

TEST("an imported versioned tensor keeps its read-only flag") {
  const Device device = fixtures::open();
  Source<DLManagedTensorVersioned> source;
  source.tensor.version = {1, 0};
  source.tensor.flags = 1;
  {
    const View view =
        View::from_dlpack(device, DlpackTensorVersioned(&source.tensor), Accessor::Host).value();
    CHECK(view.get_info().value().read_only == 1);
    CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<float>());
    CHECK(view.as<const float>());
  }
  CHECK(source.deleted == 1);
  fixtures::check_nothing_left(device);
}

TEST("a tensor that is not taken stays the caller's") {
  const Device device = fixtures::open();
  Source<DLManagedTensor> source;
  source.tensor.dl_tensor.device.device_type = cuda;
  DlpackTensor tensor(&source.tensor);
  CHECK_STATUS(WB_ERR_DLPACK, View::from_dlpack(device, std::move(tensor)));
  CHECK(tensor);
  CHECK(source.deleted == 0);
  tensor.reset();
  CHECK(source.deleted == 1);
}

TEST("a tensor without a deleter is let be") {
  Source<DLManagedTensor> source;
  source.tensor.deleter = nullptr;
  DlpackTensor(&source.tensor).reset();
  CHECK(source.deleted == 0);
}

int main() { return check::run(); }
