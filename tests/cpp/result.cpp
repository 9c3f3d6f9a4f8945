// Result and Exception.
#include <memory>
#include <string>

#include "check.hpp"
#include "weighbridge.hpp"

using weighbridge::CodeDomain;
using weighbridge::Error;
using weighbridge::Exception;
using weighbridge::Result;

static const Error refused{WB_ERR_DRIVER, 700, CodeDomain::Cuda, "the driver refused"};

TEST("a result holds a value that can only be moved") {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  CHECK(result);
  CHECK(*result.value() == 7);
  const std::unique_ptr<int> taken = std::move(result).value();
  CHECK(*taken == 7);
}

TEST("a result holds an error with status, code and message") {
  const Result<int> result(refused);
  CHECK(!result);
  CHECK(result.error().status == WB_ERR_DRIVER);
  CHECK(result.error().code == 700);
  CHECK(result.error().code_domain == CodeDomain::Cuda);
  CHECK(result.error().message == "the driver refused");
  CHECK(std::string(result.error().name()) == "WB_ERR_DRIVER");
}

TEST("a result of nothing says whether it went well") {
  CHECK(Result<void>());
  CHECK(!Result<void>(refused));
  Result<void>().value();
}

TEST("value() throws the error") {
  const auto caught = [](auto result) -> Error {
    try {
      result.value();
    } catch (const Exception& exception) {
      const std::runtime_error& base = exception;
      CHECK(std::string(base.what()) == "WB_ERR_DRIVER: the driver refused");
      return exception.error();
    }
    return {};
  };
  CHECK(caught(Result<int>(refused)).status == WB_ERR_DRIVER);
  CHECK(caught(Result<void>(refused)).code == 700);
}

TEST("a copied exception keeps its error") {
  std::unique_ptr<Exception> copy;
  {
    const Exception first(refused);
    copy = std::make_unique<Exception>(first);
  }
  CHECK(copy->error().code == 700);
  static_assert(std::is_nothrow_copy_constructible_v<Exception>);
}

TEST("a status that no library knows has a name that can be printed") {
  CHECK(std::string(Error{-5}.name()) == "an unknown status");
}

int main() { return check::run(); }
