// The ops of a Program, as in models/program.py: numbers of buffers, weights and KV layers, and constants.
#pragma once

#include <variant>
#include <vector>

namespace corral {

constexpr int kNone = -1;

struct Embed {
  int weight, out;
  float scale;
};

struct RmsNorm {
  int x, weight, out;
  float eps;
  int heads;
};

struct Linear {
  int x;
  std::vector<int> weights, outs, biases;  // a bias may be kNone
};

struct Rope {
  int x, heads, head_dim, rotated;
  double theta;
  bool interleaved;
  double scale;
  int factors;  // weight, or kNone
  int table = kNone;  // which table of angles: filled in by Model::add
};

struct KVWrite {
  int k, v, layer;
};

struct Attention {
  int q, out, layer, heads;
  float scale;
};

struct Add {
  int x, y, out;
};

struct Gated {
  int gate, up, out;
  bool gelu;
};

struct Select {
  int x, out;
};

struct Head {
  int x, weight;
};

using Op = std::variant<Embed, RmsNorm, Linear, Rope, KVWrite, Attention, Add, Gated, Select, Head>;

}  // namespace corral
