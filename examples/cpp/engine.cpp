// A small weight loader: `engine [device [model.safetensors]]`, by default "host" and a model that
// it writes itself. It views every aligned tensor in place, copies the others, and moves the
// largest one to device memory on a stream.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>
#include <weighbridge.hpp>

namespace wb = weighbridge;

struct Weight {
  std::string name;
  std::string shape;
  std::uint64_t bytes;
  wb::Safetensors::LoadedView loaded;
};

/// Writes a model of one layer, whose last tensor is not aligned.
std::string write_model(const std::string& path) {
  std::string header =
      R"({"embed.weight":{"dtype":"F32","shape":[256,64],"data_offsets":[0,65536]},)"
      R"("layer.0.scale":{"dtype":"U8","shape":[3],"data_offsets":[65536,65539]},)"
      R"("layer.0.weight":{"dtype":"F32","shape":[64,64],"data_offsets":[65539,81923]}})";
  header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');
  const std::uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << header << std::string(81923, '\0');
  return path;
}

std::string text(wb::span<const std::int64_t> shape) {
  std::string sizes;
  for (const std::int64_t size : shape) sizes += (sizes.empty() ? "" : "x") + std::to_string(size);
  return "[" + sizes + "]";
}

std::vector<Weight> load(const wb::Safetensors& file) {
  std::vector<Weight> weights;
  for (std::uint64_t index = 0; index < file.get_tensor_count(); ++index) {
    const wb_safetensors_tensor_info tensor = file.get_tensor_info(index).value();
    weights.push_back({tensor.name, text(wb::shape_of(tensor)), tensor.bytes,
                       file.load_view(index, wb::Accessor::Device, 16).value()});
  }
  return weights;
}

/// Copies a weight to the device, and releases its view of host memory after the copy.
wb::DeviceMemory move_to_device(Weight& weight, const wb::Stream& stream) {
  const wb::Device& device = stream.device();
  auto memory = wb::DeviceMemory::alloc(device, weight.bytes).value();
  wb::View& view = weight.loaded.view;
  const void* from = view.get_info().value().data;
  device.copy(memory.get(), from, weight.bytes, stream.get()).value();
  view.release_after(stream.get()).value();
  return memory;
}

void run(const std::string& path, const std::string& device_name) {
  const auto device = wb::Device::open(device_name).value();
  const auto stream = wb::Stream::make(device).value();
  auto file = wb::Safetensors::open(device, path).value();
  std::vector<Weight> weights = load(file);
  file.release();  // the views hold the file's memory

  Weight* largest = nullptr;
  for (Weight& weight : weights) {
    if (!largest || weight.bytes > largest->bytes) largest = &weight;
  }
  wb::DeviceMemory resident;
  if (largest && largest->bytes > 0) resident = move_to_device(*largest, stream);

  std::printf("%-32s %-12s %12s  %s\n", "tensor", "shape", "bytes", "location");
  for (const Weight& weight : weights) {
    const char* location = !weight.loaded.view    ? "on the device"
                           : weight.loaded.copied ? "in an aligned copy"
                                                  : "in the file's memory";
    std::printf("%-32s %-12s %12llu  %s\n", weight.name.c_str(), weight.shape.c_str(),
                static_cast<unsigned long long>(weight.bytes), location);
  }
  device.drain(std::chrono::seconds(10)).value();
  const wb_device_stats stats = device.get_stats().value();
  std::printf("%s: %llu bytes pinned, %llu on the device\n", device_name.c_str(),
              static_cast<unsigned long long>(stats.pinned_bytes),
              static_cast<unsigned long long>(stats.device_bytes));
}

int main(int count, char** arguments) {
  try {
    const bool temporary = count < 3;
    const std::string path = temporary ? write_model("engine.safetensors") : arguments[2];
    run(path, count > 1 ? arguments[1] : "host");
    if (temporary) std::remove(path.c_str());
    return 0;
  } catch (const wb::Exception& exception) {
    std::fprintf(stderr, "engine: %s\n", exception.what());
    return 1;
  }
}
