// The module corral._native: Python's view of Program. Every array is checked for type and order and never copied in.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "program.h"

namespace nb = nanobind;

void bind_matmul(nb::module_& m);

namespace corral {
namespace {

template <class T, size_t Dims>
using Array = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;

// Field `name` of a dataclass as an array of exactly this type: a converted copy would not outlive the call.
template <class T, size_t Dims = 1>
Array<T, Dims> array(nb::handle owner, const char* name) {
  Array<T, Dims> result;
  if (!nb::try_cast(owner.attr(name), result, false)) {
    throw std::invalid_argument(std::string("wrong batch: ") + name + " has another type, shape or order");
  }
  return result;
}

// The batch's arrays stay alive with the Python object that holds them, so spans suffice.
template <class T>
std::span<const T> column(nb::handle owner, const char* name) {
  const auto values = array<T>(owner, name);
  return {values.data(), values.shape(0)};
}

SamplingRows sampling_of(nb::handle rows) {
  return {
      .target = column<int32_t>(rows, "target"),
      .temperature = column<float>(rows, "temperature"),
      .top_k = column<int32_t>(rows, "top_k"),
      .top_p = column<float>(rows, "top_p"),
      .min_p = column<float>(rows, "min_p"),
      .repetition = column<float>(rows, "repetition"),
      .presence = column<float>(rows, "presence"),
      .frequency = column<float>(rows, "frequency"),
      .seeds = column<uint64_t>(rows, "seeds"),
      .logprobs = column<int32_t>(rows, "logprobs"),
      .penalty_starts = column<int32_t>(rows, "penalty_starts"),
      .penalty_ids = column<int32_t>(rows, "penalty_ids"),
      .penalty_counts = column<int32_t>(rows, "penalty_counts"),
      .penalty_repeats = column<uint8_t>(rows, "penalty_repeats"),
      .bias_starts = column<int32_t>(rows, "bias_starts"),
      .bias_ids = column<int32_t>(rows, "bias_ids"),
      .bias_values = column<float>(rows, "bias_values"),
  };
}

Batch batch_of(nb::handle batch) {
  const auto blocks = array<int32_t, 3>(batch, "blocks");
  const auto starts = column<int32_t>(batch, "starts");
  if (blocks.shape(1) + 1 != starts.size()) {
    throw std::invalid_argument("wrong batch: blocks must have one row a sequence");
  }
  return {
      .tokens = column<int32_t>(batch, "tokens"),
      .positions = column<int32_t>(batch, "positions"),
      .starts = starts,
      .blocks = {blocks.data(), blocks.size()},
      .groups = static_cast<int>(blocks.shape(0)),
      .table = static_cast<int>(blocks.shape(2)),
      .rows = column<int32_t>(batch, "rows"),
      .sampling = sampling_of(batch.attr("sampling")),
  };
}

// A NumPy array that owns its memory.
template <class T>
nb::object new_array(std::initializer_list<size_t> shape, T*& data) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  data = new T[size];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner));
}

// (tokens, logprobs, top_tokens, top_logprobs) of the batch's logit rows.
nb::tuple step(Program& program, nb::handle python_batch) {
  const Batch batch = batch_of(python_batch);
  const size_t rows = batch.rows.size();
  int32_t *tokens, *top_tokens;
  float *logprobs, *top_logprobs;
  const nb::tuple arrays = nb::make_tuple(
      new_array<int32_t>({rows}, tokens), new_array<float>({rows}, logprobs),
      new_array<int32_t>({rows, kTopTokens}, top_tokens), new_array<float>({rows, kTopTokens}, top_logprobs));
  const StepResult result{
      .tokens = {tokens, rows},
      .logprobs = {logprobs, rows},
      .top_tokens = {top_tokens, rows * kTopTokens},
      .top_logprobs = {top_logprobs, rows * kTopTokens},
  };
  nb::gil_scoped_release unlocked;
  program.step(batch, result);
  return arrays;
}

nb::object copy_buffer(const Program& program, int index) {
  if (index < 0 || static_cast<size_t>(index) >= program.model.buffers.size()) throw nb::index_error("no such buffer");
  const auto rows = static_cast<size_t>(program.buffer_rows(index));
  const auto width = static_cast<size_t>(program.model.buffers[static_cast<size_t>(index)].width);
  float* to;
  nb::object copy = new_array<float>({rows, width}, to);
  std::copy_n(program.buffer(index), rows * width, to);
  return copy;
}

void bind_ops(nb::class_<Program>& program) {
  program
      .def("embed", [](Program& p, int weight, int out, float scale) { p.model.add(Embed{weight, out, scale}); },
           nb::arg("weight"), nb::arg("out"), nb::arg("scale"))
      .def("rms_norm", [](Program& p, int x, int weight, int out, float eps, int heads) {
            p.model.add(RmsNorm{x, weight, out, eps, heads});
          }, nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("eps"), nb::arg("heads"))
      .def("linear", [](Program& p, int x, std::vector<int> weights, std::vector<int> outs, std::vector<int> biases) {
            p.model.add(Linear{x, std::move(weights), std::move(outs), std::move(biases)});
          }, nb::arg("x"), nb::arg("weights"), nb::arg("outs"), nb::arg("biases"))
      .def("rope", [](Program& p, int x, int heads, int head_dim, int rotated, double theta, bool interleaved,
                      double scale, int factors) {
            p.model.add(Rope{x, heads, head_dim, rotated, theta, interleaved, scale, factors});
          }, nb::arg("x"), nb::arg("heads"), nb::arg("head_dim"), nb::arg("rotated"), nb::arg("theta"),
           nb::arg("interleaved"), nb::arg("scale"), nb::arg("factors"))
      .def("kv_write", [](Program& p, int k, int v, int layer) { p.model.add(KVWrite{k, v, layer}); },
           nb::arg("k"), nb::arg("v"), nb::arg("layer"))
      .def("attention", [](Program& p, int q, int out, int layer, int heads, float scale) {
            p.model.add(Attention{q, out, layer, heads, scale});
          }, nb::arg("q"), nb::arg("out"), nb::arg("layer"), nb::arg("heads"), nb::arg("scale"))
      .def("add", [](Program& p, int x, int y, int out) { p.model.add(Add{x, y, out}); },
           nb::arg("x"), nb::arg("y"), nb::arg("out"))
      .def("gated", [](Program& p, int gate, int up, int out, bool gelu) { p.model.add(Gated{gate, up, out, gelu}); },
           nb::arg("gate"), nb::arg("up"), nb::arg("out"), nb::arg("gelu"))
      .def("select", [](Program& p, int x, int out) { p.model.add(Select{x, out}); }, nb::arg("x"), nb::arg("out"))
      .def("head", [](Program& p, int x, int weight) { p.model.add(Head{x, weight}); },
           nb::arg("x"), nb::arg("weight"));
}

void bind_program(nb::module_& m) {
  nb::class_<Program> program(m, "Program", "Runs a model's ops; steps run without the GIL, one at a time.");
  program
      .def("__init__", [](Program* p, int vocab, int max_tokens, int max_sequences, int num_blocks, int threads,
                          const std::string& isa) {
            new (p) Program({max_tokens, max_sequences, num_blocks, vocab}, threads, isa);
          }, nb::arg("vocab"), nb::arg("max_tokens"), nb::arg("max_sequences"), nb::arg("num_blocks"),
           nb::arg("threads"), nb::arg("isa"))
      .def("add_buffer", [](Program& p, int width, bool selected) { return p.model.add_buffer(width, selected); },
           nb::arg("width"), nb::arg("selected"))
      .def("add_kv_layer", [](Program& p, int kv_heads, int head_dim, int window, int group) {
            return p.model.add_kv_layer(kv_heads, head_dim, window, group);
          }, nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("window"), nb::arg("group"),
           "window 0 = all positions; the layers of a group share block tables.")
      .def("add_matrix", [](Program& p, std::shared_ptr<Matrix> matrix) {
            return p.model.add_matrix(std::move(matrix));
          }, nb::arg("matrix"))
      .def("add_vector", [](Program& p, Array<float, 1> values) {
            return p.model.add_vector({values.data(), values.data() + values.shape(0)});
          }, nb::arg("values").noconvert())
      .def("finish", &Program::finish, "Take the memory; nothing may be added afterwards.")
      .def("step", step, nb::arg("batch"),
           "Run executors.batch.Batch; ValueError if it does not fit. "
           "Returns tokens, logprobs, top_tokens and top_logprobs.")
      .def("buffer", copy_buffer, nb::arg("index"), "A copy of a buffer's rows as the last step left them.")
      .def("profile", [](Program& p, bool on) { p.profile().turn(on); }, nb::arg("on"),
           "Begin to measure where steps' time goes, or stop.")
      .def("profile_seconds", [](Program& p) { return p.profile().seconds(); }, "Seconds by kind of region.")
      .def_prop_ro("isa", [](const Program& p) { return std::string(isa_name(p.isa())); });
  bind_ops(program);
}

}  // namespace
}  // namespace corral

NB_MODULE(_native, m) {
  bind_matmul(m);
  corral::bind_program(m);
}
