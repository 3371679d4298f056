// The ops of a Program that keep keys and values, and read them.
#include "program.h"

namespace corral {

void KVWrite::check(const Model& model) const {
  const KVCache& cache = model.cache(layer);
  require(model.buffer(k).width == cache.kv_heads * cache.key_size, "KVWrite's width of keys");
  require(model.buffer(v).width == cache.kv_heads * cache.value_size, "KVWrite's width of values");
  require(!model.buffer(k).selected && !model.buffer(v).selected, "KVWrite needs positions");
}

void KVWrite::run_row(Program& program, int row) const {
  KVCache& cache = program.model.caches[static_cast<size_t>(layer)];
  const PointwiseKernels& kernels = *program.kernels().pointwise;
  const float *keys = program.row_of(k, row), *values = program.row_of(v, row);
  const int slot = program.batch().positions[row] % kKvBlock, key = cache.key_size, value = cache.value_size;
  const int32_t block = program.block_of(cache.group, row);
  for (int head = 0; head < cache.kv_heads; ++head) {
    kernels.store_half(keys + head * key, cache.keys(block, head) + slot, key, kKvBlock);
    kernels.store_half(values + head * value, cache.values(block, head) + slot * value, value, 1);
  }
}

void Attention::check(const Model& model) const {
  const KVCache& cache = model.cache(layer);
  require(model.buffer(q).selected == model.buffer(out).selected, "Attention's rows");
  require(model.buffer(q).base != model.buffer(out).base, "Attention's buffers");
  require(heads > 0 && heads % cache.kv_heads == 0, "Attention's heads must be a multiple of its kv heads");
  require(model.buffer(q).width == heads * cache.key_size, "Attention's width of queries");
  require(model.buffer(out).width == heads * cache.value_size, "Attention's width of results");
}

void Attention::run(Program& program) const { program.attend(*this); }

void Program::attend(const Attention& op) {
  KVCache& cache = model.caches[static_cast<size_t>(op.layer)];
  const AttentionRows rows{row_of(op.q, 0), stride_of(op.q), row_of(op.out, 0), stride_of(op.out)};
  attention_.run(op, cache, model.buffer(op.q).selected, rows);
}

}  // namespace corral
