// Python's view of a packed matrix, and of single kernels for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind_array.h"
#include "file_blocks.h"
#include "kernels.h"
#include "team.h"

namespace nb = nanobind;

void bind_matmul(nb::module_& m);

namespace corral {
namespace {

template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Result = nb::ndarray<nb::numpy, T>;

using Table = nb::ndarray<const int8_t, nb::shape<16>, nb::c_contig, nb::device::cpu>;

template <class Kind>
Kind known(std::optional<Kind> kind, const std::string& name) {
  if (!kind) throw std::invalid_argument("no kind of codes or scales is named '" + name + "'");
  return *kind;
}

// The array's data, or null for None; throws where the shape is not [rows, cols].
template <class T>
const T* data_of(const std::optional<Rows<T>>& array, size_t rows, int cols) {
  if (!array) return nullptr;
  if (array->shape(0) != rows || array->shape(1) != static_cast<size_t>(cols)) {
    throw std::invalid_argument("an array to pack has the wrong shape");
  }
  return array->data();
}

Layout layout_of(const std::string& codes, const std::string& scales, int group, int zero, float unit,
                 const std::optional<Table>& table) {
  Layout layout{known(codes_by_name(codes), codes), known(scales_by_name(scales), scales), group, zero, unit};
  if (table) std::copy_n(table->data(), layout.table.size(), layout.table.begin());
  return layout;
}

void pack(Matrix& matrix, int first_row, const Rows<uint8_t>& codes, const Rows<uint16_t>& scale,
          const std::optional<Rows<uint16_t>>& offset, const std::optional<Rows<uint8_t>>& sub_scale,
          const std::optional<Rows<uint8_t>>& sub_offset, const std::optional<Rows<uint8_t>>& zero) {
  if (!matrix.quantised()) throw std::invalid_argument("codes for a float matrix");
  const size_t rows = codes.shape(0);
  const int groups = matrix.cols() / matrix.group();
  const int scales = is_super(matrix.scales()) ? matrix.cols() / kSuper : groups;
  const CodedRows from = {
      .codes = data_of<uint8_t>(codes, rows, matrix.cols()),
      .scale = data_of<uint16_t>(scale, rows, scales),
      .offset = data_of(offset, rows, scales),
      .sub_scale = data_of(sub_scale, rows, groups),
      .sub_offset = data_of(sub_offset, rows, groups),
      .zero = data_of(zero, rows, groups),
  };
  nb::gil_scoped_release unlocked;
  matrix.pack(first_row, static_cast<int>(rows), from);
}

using RawRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;  // cut from longer rows

void require_shape(const RawRows& raw, const Matrix& matrix, size_t row_bytes) {
  const bool fits = raw.shape(0) == static_cast<size_t>(matrix.rows()) && raw.shape(1) == row_bytes;
  if (!fits || raw.stride(1) != 1) throw std::invalid_argument("a tensor's bytes do not go with the matrix");
}

void pack_floats(Matrix& matrix, int first_row, const Rows<float>& values) {
  const float* from = data_of<float>(values, values.shape(0), matrix.cols());
  nb::gil_scoped_release unlocked;
  matrix.pack_floats(first_row, static_cast<int>(values.shape(0)), from);
}

void pack_raw_floats(Matrix& matrix, const RawRows& raw) {
  require_shape(raw, matrix, static_cast<size_t>(matrix.cols()) * static_cast<size_t>(code_bits(matrix.codes())) / 8);
  nb::gil_scoped_release unlocked;
  const auto* from = reinterpret_cast<const std::byte*>(raw.data());
  matrix.pack_raw_floats(0, matrix.rows(), from, static_cast<size_t>(raw.stride(0)));
}

void pack_file(Matrix& matrix, const RawRows& raw, const std::string& type_name) {
  const BlockType* type = block_type_by_name(type_name);
  if (!type) throw std::invalid_argument("no blocks are of type '" + type_name + "'");
  if (matrix.cols() % type->cols != 0) throw std::invalid_argument("a row is not whole blocks");
  require_shape(raw, matrix, static_cast<size_t>(matrix.cols() / type->cols) * type->bytes);
  nb::gil_scoped_release unlocked;
  pack_file_blocks(matrix, *type, raw.data(), static_cast<size_t>(raw.stride(0)));
}

std::vector<std::string> file_types() {
  std::vector<std::string> names;
  for (const BlockType& type : block_types()) names.emplace_back(type.name);
  return names;
}

Result<float> dequantize_row(const Matrix& matrix, int row) {
  auto out = new_array<float>({static_cast<size_t>(matrix.cols())});
  matrix.dequantize_row(row, out.data());
  return out;
}

struct Aligned {
  void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using Memory = std::unique_ptr<std::byte[], Aligned>;

Memory quantize_rows(const MatmulKernels& kernels, const float* x, int rows, int cols) {
  const size_t size = activations_bytes(cols);
  Memory memory(new (std::align_val_t{64}) std::byte[size * static_cast<size_t>(rows)]);
  const ActivationRows to{memory.get(), cols};
  for (int n = 0; n < rows; ++n) kernels.quantize(x + static_cast<size_t>(n) * static_cast<size_t>(cols), cols / kBlock, to, n, 0);
  return memory;
}

// x [N, cols] -> [N, rows]; threads take `chunk` panels at a time.
Result<float> matmul(const Matrix& matrix, const Rows<float>& x, int threads, const std::string& isa, int chunk) {
  if (x.shape(1) != static_cast<size_t>(matrix.cols())) throw std::invalid_argument("x has the wrong width");
  if (threads < 1 || chunk < 1) throw std::invalid_argument("threads and chunk must be positive");
  const Kernels chosen = choose_kernels(isa);
  const MatmulKernels& kernels = *chosen.matmul;
  if (matrix.quantised() && chosen.isa != Isa::Scalar && matrix.order() != kernels.order) {
    throw std::invalid_argument("the matrix is packed for other instructions");
  }
  const int n = static_cast<int>(x.shape(0));
  const auto ld = static_cast<size_t>(matrix.rows());
  auto out = new_array<float>({x.shape(0), ld});
  float* to = out.data();
  nb::gil_scoped_release unlocked;
  const Memory memory = matrix.quantised() ? quantize_rows(kernels, x.data(), n, matrix.cols()) : nullptr;
  Team team(threads);
  team.run((matrix.panels() + chunk - 1) / chunk, [&](int index, int) {
    const int begin = index * chunk, end = std::min(begin + chunk, matrix.panels());
    if (matrix.quantised()) {
      kernels.matmul_panels(matrix, {memory.get(), matrix.cols()}, n, begin, end, to, ld);
    } else {
      kernels.matmul_panels_float(matrix, x.data(), x.shape(1), n, begin, end, to, ld);
    }
  });
  return out;
}

nb::tuple quantize_row(const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& x,
                       const std::string& isa) {
  const size_t cols = x.shape(0);
  if (cols % kBlock != 0) throw std::invalid_argument("the width must be a multiple of 32");
  const MatmulKernels& kernels = *choose_kernels(isa).matmul;
  const Memory memory = quantize_rows(kernels, x.data(), 1, static_cast<int>(cols));
  const ActivationBlock* row = ActivationRows{memory.get(), static_cast<int>(cols)}.row(0);
  auto q = new_array<int8_t>({cols});
  auto scale = new_array<float>({cols / kActivationGroup});
  for (size_t block = 0; block < cols / kBlock; ++block) {
    for (int byte = 0; byte < kBlock; ++byte) {
      q.data()[block * kBlock + static_cast<size_t>(column_of(kernels.order, byte / 4, byte % 4))] = row[block].q[byte];
    }
    for (size_t group = 0; group < kActivationGroups; ++group) {
      scale.data()[block * kActivationGroups + group] = row[block].scale * row[block].factor[group];
    }
  }
  return nb::make_tuple(q, scale);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (Isa isa : kIsas) {
    if (supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

void bind_matrix(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix", "A weight matrix in panels of 8 rows, or a stack of such matrices.")
      .def("__init__", [](Matrix* self, int rows, int cols, const std::string& isa, const std::string& codes,
                          const std::string& scales, int group, int zero, float unit,
                          const std::optional<Table>& table, int experts) {
            const Layout layout = layout_of(codes, scales, group, zero, unit, table);
            new (self) Matrix(rows, cols, layout, choose_kernels(isa).matmul->order, experts);
          }, nb::arg("rows"), nb::arg("cols"), nb::arg("isa"), nb::kw_only(), nb::arg("codes"), nb::arg("scales") = "none",
           nb::arg("group") = 0, nb::arg("zero") = 0, nb::arg("unit") = 1.0f, nb::arg("table").noconvert() = nb::none(),
           nb::arg("experts") = 1)
      .def("expert", [](const Matrix& matrix, int index) { return std::make_shared<Matrix>(matrix.expert(index)); },
           nb::arg("index"), "One matrix of a stack, in the stack's memory.")
      .def("pack", pack, nb::arg("first_row"), nb::arg("codes").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("offset").noconvert() = nb::none(), nb::arg("sub_scale").noconvert() = nb::none(),
           nb::arg("sub_offset").noconvert() = nb::none(), nb::arg("zero").noconvert() = nb::none(),
           "Pack some rows; first_row and the number of rows are multiples of 8, except at the end.")
      .def("pack_file", pack_file, nb::arg("raw").noconvert(), nb::arg("type_name"),
           "Pack all rows from a file's blocks of one of `file_types`.")
      .def("pack_floats", pack_floats, nb::arg("first_row"), nb::arg("values").noconvert())
      .def("pack_raw_floats", pack_raw_floats, nb::arg("raw").noconvert(),
           "Pack all rows from a file's floats, of the matrix's own kind.")
      .def("dequantize_row", dequantize_row, nb::arg("row"))
      .def_prop_ro("rows", &Matrix::rows)
      .def_prop_ro("cols", &Matrix::cols)
      .def_prop_ro("experts", &Matrix::experts)
      .def_prop_ro("nbytes", &Matrix::bytes);
}

}  // namespace
}  // namespace corral

void bind_matmul(nb::module_& m) {
  using namespace corral;
  bind_matrix(m);
  m.def("file_types", file_types, "Names of the tensor types that Matrix.pack_file takes.");
  m.def("matmul", matmul, nb::arg("matrix"), nb::arg("x").noconvert(), nb::arg("threads"), nb::arg("isa"),
        nb::arg("chunk") = 4, "x [N, cols] times the matrix's rows, as an executor does it: [N, rows].");
  m.def("quantize_row", quantize_row, nb::arg("x").noconvert(), nb::arg("isa"), "(codes, a scale for every 8 of them).");
  m.def("isas", isas, "Names of the kernels that this processor can run.");
}
