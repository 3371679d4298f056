// The row ops of a Program: each on one row, in one fixed order of arithmetic.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace corral {

void Program::run_row(const RmsNorm& op, int row) {
  const int width = model.buffers[static_cast<size_t>(op.x)].width / op.heads;
  const float *x = row_of(op.x, row), *weight = vector_of(op.weight);
  float* out = row_of(op.out, row);
  for (int head = 0; head < op.heads; ++head) {
    kernels_.pointwise->rms_norm(x + head * width, weight, out + head * width, width, op.eps);
  }
}

void Program::run_row(const Rope& op, int row) {
  const int64_t token = model.buffers[static_cast<size_t>(op.x)].selected ? batch_->rows[row] : row;
  const float* cosine = angles_[static_cast<size_t>(op.table)].get() + token * op.rotated;
  const float* sine = cosine + op.rotated / 2;
  const auto rotate = op.interleaved ? kernels_.pointwise->rope_interleaved : kernels_.pointwise->rope_half;
  float* x = row_of(op.x, row);
  for (int head = 0; head < op.heads; ++head) rotate(x + head * op.head_dim, cosine, sine, op.rotated / 2);
}

void Program::run_row(const KVWrite& op, int row) {
  KVCache& cache = model.caches[static_cast<size_t>(op.layer)];
  const float *k = row_of(op.k, row), *v = row_of(op.v, row);
  const int slot = batch_->positions[row] % kKvBlock, dim = cache.head_dim;
  const int32_t block = block_of_[static_cast<size_t>(cache.group) * tokens_ + row];
  for (int head = 0; head < cache.kv_heads; ++head) {
    kernels_.pointwise->store_half(k + head * dim, cache.keys(block, head) + slot, dim, kKvBlock);
    kernels_.pointwise->store_half(v + head * dim, cache.values(block, head) + slot * dim, dim, 1);
  }
}

void Program::run_row(const Add& op, int row) {
  kernels_.pointwise->add(row_of(op.x, row), row_of(op.y, row), row_of(op.out, row),
                          model.buffers[static_cast<size_t>(op.out)].width);
}

void Program::run_row(const Gated& op, int row) {
  const auto gate = op.gelu ? kernels_.pointwise->gelu_gate : kernels_.pointwise->silu_gate;
  gate(row_of(op.gate, row), row_of(op.up, row), row_of(op.out, row),
       model.buffers[static_cast<size_t>(op.out)].width);
}

void Program::run_row(const Select& op, int row) {
  const float* x = row_of(op.x, batch_->rows[row]);
  std::copy_n(x, model.buffers[static_cast<size_t>(op.out)].width, row_of(op.out, row));
}

void Program::run_row(const Angles& op, int row) {
  const RopeTable& table = model.ropes[static_cast<size_t>(op.table)];
  float* cosine = angles_[static_cast<size_t>(op.table)].get() + static_cast<int64_t>(row) * table.rotated;
  float* sine = cosine + table.rotated / 2;
  for (size_t i = 0; i < table.frequencies.size(); ++i) {
    const double angle = batch_->positions[row] * table.frequencies[i];
    cosine[i] = static_cast<float>(std::cos(angle));
    sine[i] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace corral
