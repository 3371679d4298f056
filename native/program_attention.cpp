// The ops of a Program that keep keys and values, and read them.
#include "program.h"

namespace corral {

void KVWrite::check(const Model& model) const {
  const int width = model.cache(layer).kv_heads * model.cache(layer).head_dim;
  require(model.buffer(k).width == width && model.buffer(v).width == width, "KVWrite's width");
  require(!model.buffer(k).selected && !model.buffer(v).selected, "KVWrite needs positions");
}

void KVWrite::run_row(Program& program, int row) const {
  KVCache& cache = program.model.caches[static_cast<size_t>(layer)];
  const PointwiseKernels& kernels = *program.kernels().pointwise;
  const float *keys = program.row_of(k, row), *values = program.row_of(v, row);
  const int slot = program.batch().positions[row] % kKvBlock, dim = cache.head_dim;
  const int32_t block = program.block_of(cache.group, row);
  for (int head = 0; head < cache.kv_heads; ++head) {
    kernels.store_half(keys + head * dim, cache.keys(block, head) + slot, dim, kKvBlock);
    kernels.store_half(values + head * dim, cache.values(block, head) + slot * dim, dim, 1);
  }
}

void Attention::check(const Model& model) const {
  const KVCache& cache = model.cache(layer);
  model.require_like(q, out);
  require(model.buffer(q).base != model.buffer(out).base, "Attention's buffers");
  require(heads > 0 && heads % cache.kv_heads == 0, "Attention's heads must be a multiple of its kv heads");
  require(model.buffer(q).width == heads * cache.head_dim, "Attention's width");
}

void Attention::run(Program& program) const { program.attend(*this); }

void Program::attend(const Attention& op) {
  KVCache& cache = model.caches[static_cast<size_t>(op.layer)];
  const AttentionRows rows{row_of(op.q, 0), stride_of(op.q), row_of(op.out, 0), stride_of(op.out)};
  attention_.run(op, cache, model.buffer(op.q).selected, rows);
}

}  // namespace corral
