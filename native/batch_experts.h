// Feed-forwards of which each row takes some: every active expert's matrices are multiplied once, by all of its rows.
#pragma once

#include <vector>

#include "float_array.h"
#include "ops.h"
#include "qmatmul.h"

namespace corral {

// A row's result does not depend on the rows beside it: its products are those of the matmul kernels, and they are
// added up in the order of the experts' numbers.
class BatchExperts {
 public:
  explicit BatchExperts(Program& program) : program_(program) {}

  // Takes the memory that the op needs for so many rows.
  void reserve(const Experts& op, int rows);
  void run(const Experts& op);

 private:
  // A row at one of its experts. Pairs are sorted by expert, then by row.
  struct Pair {
    int row;
    float weight;
  };
  // An expert that rows have chosen, with its pairs. In memory the rows may lie one after the other already.
  struct Active {
    int expert, begin, end;
    bool together;
    int panels, first_chunk;  // how its matrices are cut
  };
  // Some of an expert's pairs, and panels of its matrices.
  struct Chunk {
    const Active& active;
    int begin, end, first_panel, end_panel;

    int rows() const { return end - begin; }
    int column() const { return first_panel * kPanelRows; }
    size_t stride() const;  // floats from row to row of its products
  };
  // Rows that a matrix is multiplied by.
  struct Inputs {
    ActivationRows quantised;
    const float* floats;
    size_t stride;
  };

  void sort_pairs(const Experts& op);
  void gather_rows(const Experts& op);
  int cut_chunks(int panels);
  Chunk chunk_of(int number, int panels) const;
  // hidden = activation(gate x) * up x, quantised if the matrix that reads it is.
  void make_hidden(const Experts& op, const Chunk& chunk, float* gate, float* up);
  // out += weight * down hidden.
  void add_down(const Experts& op, const Chunk& chunk, float* products);
  Inputs inputs_of(const Experts& op, const Chunk& chunk) const;
  Inputs hidden_of(const Experts& op, int pair) const;
  void multiply(const Matrix& matrix, const Inputs& x, const Chunk& chunk, float* out) const;
  float* strip(int thread, int number) const;

  // Memory that grows until every op has enough.
  struct Scratch {
    FloatArray floats;
    size_t size = 0;

    void reserve(size_t wanted);
    ActivationRows rows(int cols) const { return {reinterpret_cast<std::byte*>(floats.get()), cols}; }
  };

  Program& program_;
  std::vector<Pair> pairs_;
  std::vector<int> ends_;  // of each expert's pairs, as they are sorted
  std::vector<Active> active_;
  Scratch gathered_rows_, gathered_floats_, hidden_;  // of the pairs
  Scratch strips_;                                    // products of a chunk: two a thread
};

}  // namespace corral
