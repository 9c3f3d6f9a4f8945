// safetensors files.
#include <string>

#include "fixtures.hpp"

using namespace weighbridge;

TEST("tensors are listed in the order of their data") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  const Safetensors file = Safetensors::open(device, written.path()).value();
  CHECK(file.get_tensor_count() == 3);
  std::string names;
  for (std::uint64_t index = 0; index < file.get_tensor_count(); ++index) {
    names += std::string(file.get_tensor_info(index).value().name) + " ";
  }
  CHECK(names == "alpha beta gamma ");
  const wb_safetensors_tensor_info alpha = file.get_tensor_info(0).value();
  CHECK(alpha.dtype == WB_DTYPE_F32);
  CHECK(alpha.bytes == 24);
  CHECK(shape_of(alpha).size() == 2 && shape_of(alpha)[1] == 3);
  CHECK(file.get_header().find(R"("made":"here")") != std::string_view::npos);
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, file.get_tensor_info(3));
}

TEST("a tensor is found by its name") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  const Safetensors file = Safetensors::open(device, written.path()).value();
  CHECK(file.find_tensor("gamma").value() == 2);
  const auto missing = file.find_tensor("delta");
  CHECK_STATUS(WB_ERR_NOT_FOUND, missing);
  CHECK(missing.error().message.find("delta") != std::string::npos);
}

TEST("a view lies in the file's buffer, and outlives the file") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  Safetensors file = Safetensors::open(device, written.path()).value();
  const Buffer whole = file.get_buffer().value();
  const View view = file.get_view(0, Accessor::Host, 16).value();
  CHECK(view.get_info().value().data ==
        whole.bytes().data() + file.get_tensor_info(0).value().offset_bytes);
  file.release();
  CHECK(view.as<const float>().value()[5] == 6);
}

TEST("what is not aligned is copied by load, said so, and refused by view") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  const Safetensors file = Safetensors::open(device, written.path()).value();
  const Safetensors::LoadedView alpha = file.load_view(0, Accessor::Host, 16).value();
  CHECK(!alpha.copied);
  const Safetensors::LoadedView gamma = file.load_view(2, Accessor::Host, 16).value();
  CHECK(gamma.copied);
  CHECK(gamma.view.as<const float>().value()[1] == 8);
  CHECK_STATUS(WB_ERR_UNALIGNED, file.get_view(2, Accessor::Host, 16));
  const auto odd = file.get_view(2, Accessor::Host);
  CHECK(odd);
  CHECK_STATUS(WB_ERR_UNALIGNED, odd.value().as<const float>());
}

TEST("loading onto the device gives addresses of the device") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  {
    const Safetensors file = Safetensors::open(device, written.path()).value();
    for (std::uint64_t index = 0; index < file.get_tensor_count(); ++index) {
      const Safetensors::LoadedView loaded = file.load_view(index, Accessor::Device, 16).value();
      const wb_view_info info = loaded.view.get_info().value();
      CHECK(info.device_address != nullptr);
      CHECK(reinterpret_cast<std::uintptr_t>(info.device_address) % 16 == 0 || !loaded.copied);
    }
  }
  fixtures::check_nothing_left(device);
}

TEST("a file that is not well formed is refused, and leaves nothing") {
  const Device device = fixtures::open();
  const fixtures::File text("this is no model");
  CHECK(!Safetensors::open(device, text.path()));
  const fixtures::File overlap(fixtures::safetensors(
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
      R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
      "123456"));
  CHECK_STATUS(WB_ERR_FORMAT, Safetensors::open(device, overlap.path()));
  const fixtures::File empty("");
  CHECK_STATUS(WB_ERR_FILE_EMPTY, Safetensors::open(device, empty.path()));
  fixtures::check_nothing_left(device);
}

int main() { return check::run(); }
