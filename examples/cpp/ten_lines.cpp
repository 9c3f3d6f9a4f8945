#include <iostream>
#include <weighbridge.hpp>

int main() {
  auto device = weighbridge::Device::open("host").value();  // or "cuda:0"
  auto buffer = weighbridge::Buffer::alloc(device, 4 << 20).value();
  auto view = weighbridge::View::make(buffer, weighbridge::Layout::of<float>({1024, 1024})).value();
  auto weights = view.as<float>().value();
  for (float& weight : weights) weight = 0.5f;
  std::cout << view.get_info().value().elements << " weights in "
            << buffer.get_info().value().pinned_bytes << " pinned bytes\n";
}
