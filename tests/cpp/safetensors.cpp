// safetensors files.
#include <cstring>
#include <string>
#include <vector>

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
  const auto names = file.get_names().value();
  CHECK(names.size() == file.get_tensor_count() && names[2] == "gamma");
  const auto missing = file.find_tensor("delta");
  CHECK_STATUS(WB_ERR_NOT_FOUND, missing);
  CHECK(missing.error().message.find("delta") != std::string::npos);
}

TEST("a view aliases the file's buffer, and outlives the file") {
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

TEST("an unaligned tensor is copied by load and refused by view") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  const Safetensors file = Safetensors::open(device, written.path()).value();
  const Safetensors::LoadedView alpha = file.load_view(0, Accessor::Host, 16).value();
  CHECK(!alpha.copied);
  const Safetensors::LoadedView gamma = file.load_view(2, Accessor::Host, 16).value();
  CHECK(gamma.copied);
  CHECK(gamma.view.as<const float>().value()[1] == 8);
  CHECK_STATUS(WB_ERR_UNALIGNED, file.get_view(2, Accessor::Host, 16));
  const auto unaligned = file.get_view(2, Accessor::Host);
  CHECK(unaligned);
  CHECK_STATUS(WB_ERR_UNALIGNED, unaligned.value().as<const float>());
}

TEST("a tensor loaded for the device has a device address") {
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

TEST("a malformed file is refused without a leak") {
  const Device device = fixtures::open();
  const fixtures::File text("not a safetensors file");
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

TEST("all tensors become the parameters of a plan, which hold the file") {
  const Device device = fixtures::open();
  const fixtures::File written(fixtures::three_tensors());
  BufferOptions options;
  options.file_mode = FileMode::Source;
  Safetensors file = Safetensors::open(device, written.path(), options).value();
  CHECK(file.get_buffer().value().get_info().value().pinned_bytes == 0);
  const std::vector<Parameter> parameters = file.get_parameters().value();
  file.release();
  CHECK(parameters.size() == 3);
  CHECK(parameters[0].name == "alpha" && parameters[0].group.empty());
  CHECK(parameters[0].layout.dtype == WB_DTYPE_F32 && parameters[0].layout.shape[1] == 3);
  CHECK(static_cast<const float*>(parameters[0].source)[5] == 6);
  PlanOptions plan_options{Budget::offload_bytes(1 << 20)};
  plan_options.transfer_mode = TransferMode::OnDemand;
  const Plan plan = Plan::make(device, parameters, plan_options).value();
  const Offloader offloader = Offloader::make(plan).value();
  CHECK(offloader.get_host_view(0).value().as<const float>().value()[5] == 6);
}

TEST("a parameter of an opaque type keeps its bytes, name and shape") {
  const Device device = fixtures::open();
  std::vector<unsigned char> bytes(2 * 3 * 18);
  for (std::size_t at = 0; at < bytes.size(); ++at) bytes[at] = static_cast<unsigned char>(7 * at);
  Parameter parameter{"w", "layers.0"};
  parameter.layout = Layout::opaque("q4_0", 32, 18, {2, 96});
  parameter.source = bytes.data();
  PlanOptions options{Budget::offload_bytes(1 << 20)};
  options.transfer_mode = TransferMode::OnDemand;
  const Plan plan = Plan::make(device, {parameter}, options).value();
  const wb_plan_parameter_info planned = plan.get_parameter_info(0).value();
  CHECK(planned.dtype == WB_DTYPE_OPAQUE && std::string(planned.dtype_name) == "q4_0");
  CHECK(shape_of(planned)[1] == 96 && planned.span_bytes == bytes.size());
  const Offloader offloader = Offloader::make(plan).value();
  const wb_offloader_parameter_info info = offloader.get_parameter_info(0).value();
  CHECK(std::memcmp(info.host_address, bytes.data(), bytes.size()) == 0);
  const Layout again = Layout::from_c(info);
  CHECK(again.dtype_name == "q4_0" && again.block_bytes == 18 && again.shape[1] == 96);
  CHECK(offloader.replace("w", bytes.data(), again));
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED, offloader.get_host_view(0));
}
