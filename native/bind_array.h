// NumPy arrays that the bindings return.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>

namespace corral {

// An array that owns its memory, whose contents are undefined.
template <class T>
nanobind::ndarray<nanobind::numpy, T> new_array(std::initializer_list<size_t> shape) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  T* data = new T[size];
  nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return {data, shape, owner};
}

}  // namespace corral
