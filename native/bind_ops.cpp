#include "bind_ops.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>

namespace nb = nanobind;

namespace corral {
namespace {

void read(nb::handle value, bool& to) { to = nb::cast<bool>(value); }
void read(nb::handle value, int& to) { to = nb::cast<int>(value); }
void read(nb::handle value, float& to) { to = nb::cast<float>(value); }
void read(nb::handle value, double& to) { to = nb::cast<double>(value); }

template <int Kind>
void read(nb::handle value, Number<Kind>& to) {
  read(value, to.index);
}

template <class Enum>
  requires std::is_enum_v<Enum>
void read(nb::handle value, Enum& to) {
  const auto name = std::find(kNames<Enum>.begin(), kNames<Enum>.end(), nb::cast<std::string>(value));
  if (name == kNames<Enum>.end()) throw std::invalid_argument("wrong program: an unknown name in an op");
  to = static_cast<Enum>(name - kNames<Enum>.begin());
}

template <class T>
void read(nb::handle value, std::optional<T>& to) {
  if (!value.is_none()) read(value, to.emplace());
}

template <class T>
void read(nb::handle values, std::vector<T>& to) {
  for (nb::handle value : values) read(value, to.emplace_back());
}

template <class T>
void read_fields(nb::handle op, T& to) {
  const auto read_field = [&](auto field) {
    try {
      read(op.attr(field.name), to.*field.member);
    } catch (const nb::cast_error&) {
      throw std::invalid_argument(std::string("wrong program: ") + T::kName + "'s " + field.name + " has another type");
    }
  };
  std::apply([&](auto... field) { (read_field(field), ...); }, T::fields());
}

// Tries one struct after the other.
template <class... Ops>
std::optional<Op> read_named(nb::handle op, const std::string& name, std::variant<Ops...>*) {
  std::optional<Op> found;
  const auto try_one = [&]<class T>(T one) {
    if constexpr (FromPython<T>) {
      if (name == T::kName) {
        read_fields(op, one);
        found = std::move(one);
      }
    }
  };
  (try_one(Ops{}), ...);
  return found;
}

}  // namespace

Op read_op(nb::handle op) {
  const auto name = nb::cast<std::string>(op.type().attr("__name__"));
  std::optional<Op> found = read_named(op, name, static_cast<Op*>(nullptr));
  if (!found) throw std::invalid_argument("wrong program: the native executor has no op " + name);
  return *std::move(found);
}

}  // namespace corral
