// The module corral._native: Python's view of Program. Every array is checked for type and order and never copied in.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bind_array.h"
#include "bind_ops.h"
#include "program.h"

namespace nb = nanobind;

void bind_matmul(nb::module_& m);

namespace corral {
namespace {

template <class T, size_t Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;

// What NumPy calls the types that a step's arrays have.
template <class T>
constexpr const char* kFormat = nullptr;
template <>
constexpr const char* kFormat<int32_t> = "i";
template <>
constexpr const char* kFormat<uint32_t> = "I";
template <>
constexpr const char* kFormat<float> = "f";
template <>
constexpr const char* kFormat<SamplingColumns> =
    "T{f:temperature:i:top_k:f:top_p:f:min_p:f:repetition:f:presence:f:frequency:i:logprobs:i:target:i:index:L:seed:}";

nb::object field(nb::handle owner, const char* name) {
  return owner.attr(nb::steal(PyUnicode_InternFromString(name)));  // the type's cache knows only interned names
}

// The arrays of a step's dataclasses as they lie in memory: checked, never converted, held until all is done.
class Arrays {
 public:
  Arrays() = default;
  Arrays(const Arrays&) = delete;
  Arrays& operator=(const Arrays&) = delete;
  ~Arrays() {
    for (size_t i = 0; i < count_; ++i) PyBuffer_Release(&views_[i]);
  }

  // Field `name` of a dataclass, which must have exactly this type and so many dimensions.
  template <class T>
  const Py_buffer& view(nb::handle owner, const char* name, int dims, int flags = PyBUF_ND) {
    Py_buffer& found = views_.at(count_);
    if (PyObject_GetBuffer(field(owner, name).ptr(), &found, flags | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
      PyErr_Clear();
      refuse(name);
    }
    ++count_;
    if (found.ndim != dims || std::string_view(found.format) != kFormat<T>) refuse(name);
    return found;
  }

  template <class T>
  std::span<const T> column(nb::handle owner, const char* name) {
    const Py_buffer& found = view<T>(owner, name, 1);
    return {static_cast<const T*>(found.buf), static_cast<size_t>(found.shape[0])};
  }

  // So many entries to write to.
  template <class T>
  std::span<T> output(nb::handle owner, const char* name, int dims, size_t size) {
    const Py_buffer& found = view<T>(owner, name, dims, PyBUF_WRITABLE);
    if (static_cast<size_t>(found.len) != size * sizeof(T)) refuse(name);
    return {static_cast<T*>(found.buf), size};
  }

 private:
  [[noreturn]] static void refuse(const char* name) {
    throw std::invalid_argument(std::string("wrong batch: ") + name + " has another type, shape or order");
  }

  std::array<Py_buffer, 24> views_;
  size_t count_ = 0;
};

template <class T>
RowLists<T> lists_of(Arrays& arrays, nb::handle lists, const char* values) {
  if (lists.is_none()) return {};
  return {arrays.column<int32_t>(lists, "starts"), arrays.column<int32_t>(lists, "ids"), arrays.column<T>(lists, values)};
}

Masks masks_of(Arrays& arrays, nb::handle masks) {
  if (masks.is_none()) return {};
  const Py_buffer& bits = arrays.view<uint32_t>(masks, "bits", 2);
  return {
      .rows = arrays.column<int32_t>(masks, "rows"),
      .bits = {static_cast<const uint32_t*>(bits.buf), static_cast<size_t>(bits.len) / sizeof(uint32_t)},
      .words = static_cast<size_t>(bits.shape[1]),
  };
}

Batch batch_of(Arrays& arrays, nb::handle batch, nb::handle sampling) {
  const Py_buffer& tables = arrays.view<int32_t>(batch, "tables", 3);
  const bool has_inputs = !field(batch, "inputs").is_none();
  const Py_buffer* inputs = has_inputs ? &arrays.view<float>(batch, "inputs", 2) : nullptr;
  return {
      .tokens = arrays.column<int32_t>(batch, "tokens"),
      .positions = arrays.column<int32_t>(batch, "positions"),
      .starts = arrays.column<int32_t>(batch, "starts"),
      .slots = arrays.column<int32_t>(batch, "slots"),
      .tables = {static_cast<const int32_t*>(tables.buf), static_cast<size_t>(tables.len) / sizeof(int32_t)},
      .groups = static_cast<int>(tables.shape[0]),
      .all_slots = static_cast<int>(tables.shape[1]),
      .table = static_cast<int>(tables.shape[2]),
      .rows = arrays.column<int32_t>(batch, "rows"),
      .sampling = {
          .columns = arrays.column<SamplingColumns>(sampling, "columns"),
          .masks = masks_of(arrays, field(sampling, "masks")),
          .penalties = lists_of<int32_t>(arrays, field(sampling, "penalties"), "counts"),
          .bias = lists_of<float>(arrays, field(sampling, "bias"), "values"),
      },
      .inputs = inputs == nullptr ? std::span<const float>{}
                                  : std::span{static_cast<const float*>(inputs->buf),
                                              static_cast<size_t>(inputs->len) / sizeof(float)},
  };
}

void step(Program& program, nb::handle python_batch, nb::handle python_sampling, nb::handle python_result) {
  Arrays arrays;
  const Batch batch = batch_of(arrays, python_batch, python_sampling);
  const size_t rows = batch.rows.size(), width = static_cast<size_t>(program.model.output_width());
  const StepResult result{
      .tokens = arrays.output<int32_t>(python_result, "tokens", 1, rows),
      .logprobs = arrays.output<float>(python_result, "logprobs", 1, rows),
      .top_tokens = arrays.output<int32_t>(python_result, "top_tokens", 2, rows * kTopTokens),
      .top_logprobs = arrays.output<float>(python_result, "top_logprobs", 2, rows * kTopTokens),
      .vectors = width == 0 ? std::span<float>{} : arrays.output<float>(python_result, "vectors", 2, rows * width),
  };
  nb::gil_scoped_release unlocked;
  program.step(batch, result);
}

nb::ndarray<nb::numpy, float> copy_buffer(const Program& program, int index) {
  if (index < 0 || static_cast<size_t>(index) >= program.model.buffers.size()) throw nb::index_error("no such buffer");
  const auto rows = static_cast<size_t>(program.rows_in(index));
  const auto width = static_cast<size_t>(program.model.buffer(index).width);
  auto copy = new_array<float>({rows, width});
  for (size_t row = 0; row < rows; ++row) std::copy_n(program.row_of(index, row), width, copy.data() + row * width);
  return copy;
}

void bind_program(nb::module_& m) {
  nb::class_<Program> program(m, "Program", "Runs a model's ops; steps run without the GIL, one at a time.");
  program
      .def("__init__", [](Program* p, int vocab, int max_tokens, int max_sequences, std::vector<int> num_blocks, int threads,
                          const std::string& isa) {
            new (p) Program({max_tokens, max_sequences, vocab}, threads, isa);
            p->model.num_blocks = std::move(num_blocks);
          }, nb::arg("vocab"), nb::arg("max_tokens"), nb::arg("max_sequences"), nb::arg("num_blocks"),
           nb::arg("threads"), nb::arg("isa"))
      .def("add_buffer", [](Program& p, int width, bool selected) { return p.model.add_buffer(width, selected); },
           nb::arg("width"), nb::arg("selected"))
      .def("add_view", [](Program& p, int base, int start, int width) { return p.model.add_view(base, start, width); },
           nb::arg("base"), nb::arg("start"), nb::arg("width"), "Columns of a buffer that has memory of its own.")
      .def("add_kv_group", [](Program& p, int window, int pool) { return p.model.add_kv_group(window, pool); },
           nb::arg("window"), nb::arg("pool"), "Layers that share block tables; window 0 = all positions.")
      .def("add_kv_layer", [](Program& p, int kv_heads, int key_size, int value_size, int group) {
            return p.model.add_kv_layer(kv_heads, key_size, value_size, group);
          }, nb::arg("kv_heads"), nb::arg("key_size"), nb::arg("value_size"), nb::arg("group"))
      .def("add_matrices", [](Program& p, const std::vector<std::shared_ptr<Matrix>>& matrices) {
            return p.model.add_matrices({matrices.begin(), matrices.end()});
          }, nb::arg("matrices"), "One weight: a matrix, or one for each expert.")
      .def("add_vector", [](Program& p, Array<float, 1> values) {
            return p.model.add_vector({values.data(), values.data() + values.shape(0)});
          }, nb::arg("values").noconvert())
      .def("add", [](Program& p, nb::handle op) { p.model.add(read_op(op)); }, nb::arg("op"),
           "An op of models/ops.py that names buffers; ValueError if it does not fit or is not known here.")
      .def("finish", &Program::finish, "Take the memory; nothing may be added afterwards.")
      .def("step", step, nb::arg("batch"), nb::arg("sampling"), nb::arg("result"),
           "Run a Batch with its SamplingRows (executors.batch), into the arrays of a StepResult; ValueError if they "
           "do not fit.")
      .def("buffer", copy_buffer, nb::arg("index"), "A copy of a buffer's rows as the last step left them.")
      .def("profile", [](Program& p, bool on) { p.profile().turn(on); }, nb::arg("on"),
           "Begin to measure where steps' time goes, or stop.")
      .def("profile_seconds", [](Program& p) { return p.profile().seconds(); }, "Seconds by kind of region.")
      .def_prop_ro("buffer_bytes", &Program::buffer_bytes, "What finish has taken for the rows of a step.")
      .def_prop_ro("isa", [](const Program& p) { return std::string(isa_name(p.isa())); });
}

}  // namespace
}  // namespace corral

NB_MODULE(_native, m) {
  m.attr("KV_BLOCK") = corral::kKvBlock;
  bind_matmul(m);
  corral::bind_program(m);
}
