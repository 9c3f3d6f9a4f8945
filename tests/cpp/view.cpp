// Typed access to views.
#include <complex>
#include <cstdint>
#include <numeric>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

/// A half type that the caller defines.
struct Half {
  std::uint16_t bits;
};
template <>
struct weighbridge::dtype_of<Half> : weighbridge::dtype_constant<WB_DTYPE_F16> {};

static_assert(dtype_of<bool>::value == WB_DTYPE_BOOL);
static_assert(dtype_of<std::int8_t>::value == WB_DTYPE_I8);
static_assert(dtype_of<std::uint16_t>::value == WB_DTYPE_U16);
static_assert(dtype_of<std::int32_t>::value == WB_DTYPE_I32);
static_assert(dtype_of<long>::value == WB_DTYPE_I64);
static_assert(dtype_of<unsigned long long>::value == WB_DTYPE_U64);
static_assert(dtype_of<double>::value == WB_DTYPE_F64);
static_assert(dtype_of<std::complex<float>>::value == WB_DTYPE_C64);

template <class T>
static void check_elements(const Device& device) {
  const Buffer buffer = Buffer::alloc(device, 6 * sizeof(T)).value();
  const View view = View::make(buffer, Layout::of<T>({2, 3})).value();
  const auto elements = view.as<T>().value();
  CHECK(elements.size() == 6);
  elements[5] = T{1};
  CHECK(view.as<const T>().value()[5] == T{1});
  CHECK(static_cast<const void*>(elements.data()) == buffer.bytes().data());
}

TEST("elements of every C++ type are accessed in place") {
  const Device device = fixtures::open();
  check_elements<bool>(device);
  check_elements<std::int8_t>(device);
  check_elements<std::int16_t>(device);
  check_elements<std::int32_t>(device);
  check_elements<std::int64_t>(device);
  check_elements<std::uint8_t>(device);
  check_elements<std::uint16_t>(device);
  check_elements<std::uint32_t>(device);
  check_elements<std::uint64_t>(device);
  check_elements<float>(device);
  check_elements<double>(device);
  check_elements<std::complex<float>>(device);
}

TEST("a type other than the view's is refused") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 16).value();
  const View view = View::make(buffer, Layout::of<float>({4})).value();
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<std::int32_t>());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<const double>());
  CHECK_THROWS(Exception, view.as<std::uint32_t>().value());
}

TEST("a type that the caller defines is accepted") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 4).value();
  const View view = View::make(buffer, Layout::of<Half>({2})).value();
  CHECK(view.get_info().value().dtype == WB_DTYPE_F16);
  view.as<Half>().value()[1].bits = 0x3c00;
  CHECK(buffer.bytes()[3] == std::byte{0x3c});
}

TEST("elements with gaps or in another order have no span") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 24 * sizeof(float)).value();
  const auto span_of = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    const Layout layout{WB_DTYPE_F32, std::move(shape), std::move(strides), 0};
    return View::make(buffer, layout).value().as<float>();
  };
  CHECK(span_of({2, 3}, {3, 1}));
  CHECK(span_of({1, 3}, {99, 1}));
  CHECK(span_of({}, {}).value().size() == 1);
  CHECK(span_of({0, 3}, {7, 7}).value().empty());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, span_of({2, 3}, {4, 1}));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, span_of({3, 2}, {1, 3}));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, span_of({4}, {0}));
}

TEST("a view of a file is read-only") {
  const Device device = fixtures::open();
  const fixtures::File file(fixtures::raw<std::int32_t>({1, 2, 3}));
  const Buffer buffer = Buffer::map_file(device, file.path()).value();
  const View view = View::make(buffer, Layout::of<std::int32_t>({3}), Accessor::Host).value();
  CHECK(view.as<const std::int32_t>().value()[2] == 3);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<std::int32_t>());
}

TEST("unaligned elements have no span") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 32).value();
  const auto unaligned = View::make(buffer, Layout::of<float>({4}, 1));
  if (unaligned) CHECK_STATUS(WB_ERR_UNALIGNED, unaligned.value().as<float>());
}

TEST("a view has a shape and a buffer") {
  const Device device = fixtures::open();
  Buffer buffer = Buffer::alloc(device, 64).value();
  const View view = View::make(buffer, Layout::of<float>({2, 3}, 8)).value();
  const wb_view_info info = view.get_info().value();
  const auto shape = shape_of(info);
  CHECK(shape.size() == 2);
  CHECK(shape[0] == 2 && shape[1] == 3);
  CHECK(info.elements == 6);
  CHECK(info.span_bytes == 24);
  const wb_buffer* raw = buffer.get();
  buffer.release();
  CHECK(view.get_buffer().value().get() == raw);
}

TEST("a copy has its own memory and the same gaps") {
  const Device device = fixtures::open();
  std::vector<std::int16_t> source(12);
  std::iota(source.begin(), source.end(), std::int16_t{0});
  const Layout gaps{WB_DTYPE_I16, {3, 2}, {4, 1}, 0};
  const View view = View::copy_from(device, source.data(), gaps).value();
  source.assign(source.size(), -1);
  const wb_view_info info = view.get_info().value();
  CHECK(info.strides[0] == 4);
  CHECK(static_cast<const std::int16_t*>(info.data)[9] == 9);
}

int main() { return check::run(); }
