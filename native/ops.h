// The ops of a Program: a struct for each dataclass of models/ops.py that this executor runs, with the same fields.
//
// An op has a name, its fields, and a check of their shapes against the model. A row op then has run_row: it works on
// each row alone, and neighbouring row ops take a row through all of them before the next. Any other op has run, which
// shares its work among the team itself, and the kind of work it is to a profile.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <variant>
#include <vector>

namespace corral {

struct Model;
class Program;

// Numbers in a Program, told apart by what they are of.
template <int Kind>
struct Number {
  int index = -1;
  constexpr operator int() const { return index; }
};
using Read = Number<0>;     // a buffer
using Written = Number<1>;  // a buffer
using MatrixRef = Number<2>;
using VectorRef = Number<3>;
using LayerRef = Number<4>;  // of the KV cache
using StackRef = Number<5>;  // as many matrices as there are experts

// The texts that Python has for an enum's values, in their order.
template <class Enum>
constexpr std::array<std::string_view, 0> kNames{};

enum class Activation { kSilu, kGeluTanh };
template <>
inline constexpr std::array<std::string_view, 2> kNames<Activation>{"silu", "gelu_tanh"};

enum class RopeStyle { kHalf, kInterleaved };
template <>
inline constexpr std::array<std::string_view, 2> kNames<RopeStyle>{"half", "interleaved"};

template <class Op, class T>
struct Field {
  const char* name;
  T Op::*member;
};

struct Embed {
  static constexpr const char* kName = "Embed";
  MatrixRef weight;
  Written out;
  float scale;

  static constexpr auto fields() {
    return std::tuple{Field{"weight", &Embed::weight}, Field{"out", &Embed::out}, Field{"scale", &Embed::scale}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Input {
  static constexpr const char* kName = "Input";
  Written out;

  static constexpr auto fields() { return std::tuple{Field{"out", &Input::out}}; }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct RmsNorm {
  static constexpr const char* kName = "RmsNorm";
  Read x;
  VectorRef weight;
  Written out;
  float eps;
  int heads;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &RmsNorm::x}, Field{"weight", &RmsNorm::weight}, Field{"out", &RmsNorm::out},
                      Field{"eps", &RmsNorm::eps}, Field{"heads", &RmsNorm::heads}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct LayerNorm {
  static constexpr const char* kName = "LayerNorm";
  Read x;
  VectorRef weight, bias;
  Written out;
  float eps;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &LayerNorm::x}, Field{"weight", &LayerNorm::weight}, Field{"bias", &LayerNorm::bias},
                      Field{"out", &LayerNorm::out}, Field{"eps", &LayerNorm::eps}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Linear {
  static constexpr const char* kName = "Linear";
  Read x;
  std::vector<MatrixRef> weights;
  std::vector<Written> outs;
  std::vector<std::optional<VectorRef>> biases;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &Linear::x}, Field{"weights", &Linear::weights}, Field{"outs", &Linear::outs},
                      Field{"biases", &Linear::biases}};
  }
  void check(const Model& model) const;
  void run(Program& program) const;
  std::string kind(const Model& model) const;
};

struct Rope {
  static constexpr const char* kName = "Rope";
  Read x;
  Written out;
  int heads;
  std::vector<double> frequencies;
  RopeStyle style;
  double magnitude;
  int table = -1;  // which table of angles: Model::add fills it in

  static constexpr auto fields() {
    return std::tuple{Field{"x", &Rope::x}, Field{"out", &Rope::out}, Field{"heads", &Rope::heads},
                      Field{"frequencies", &Rope::frequencies}, Field{"style", &Rope::style},
                      Field{"magnitude", &Rope::magnitude}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct KVWrite {
  static constexpr const char* kName = "KVWrite";
  Read k, v;
  LayerRef layer;

  static constexpr auto fields() {
    return std::tuple{Field{"k", &KVWrite::k}, Field{"v", &KVWrite::v}, Field{"layer", &KVWrite::layer}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Attention {
  static constexpr const char* kName = "Attention";
  Read q;
  Written out;
  LayerRef layer;
  int heads;
  float scale, softcap;

  static constexpr auto fields() {
    return std::tuple{Field{"q", &Attention::q},         Field{"out", &Attention::out},
                      Field{"layer", &Attention::layer}, Field{"heads", &Attention::heads},
                      Field{"scale", &Attention::scale}, Field{"softcap", &Attention::softcap}};
  }
  void check(const Model& model) const;
  void run(Program& program) const;
  std::string kind(const Model&) const { return "attention"; }
};

struct Add {
  static constexpr const char* kName = "Add";
  Read x, y;
  Written out;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &Add::x}, Field{"y", &Add::y}, Field{"out", &Add::out}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Gated {
  static constexpr const char* kName = "Gated";
  Read gate, up;
  Written out;
  Activation activation;

  static constexpr auto fields() {
    return std::tuple{Field{"gate", &Gated::gate}, Field{"up", &Gated::up}, Field{"out", &Gated::out},
                      Field{"activation", &Gated::activation}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Route {
  static constexpr const char* kName = "Route";
  Read x;
  Written chosen, weights;
  bool renormalise;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &Route::x}, Field{"chosen", &Route::chosen}, Field{"weights", &Route::weights},
                      Field{"renormalise", &Route::renormalise}};
  }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Experts {
  static constexpr const char* kName = "Experts";
  Read x, chosen, weights;
  StackRef gate, up, down;
  Written out;
  Activation activation;
  int first;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &Experts::x}, Field{"chosen", &Experts::chosen}, Field{"weights", &Experts::weights},
                      Field{"gate", &Experts::gate}, Field{"up", &Experts::up}, Field{"down", &Experts::down},
                      Field{"out", &Experts::out}, Field{"activation", &Experts::activation},
                      Field{"first", &Experts::first}};
  }
  void check(const Model& model) const;
  void run(Program& program) const;
  std::string kind(const Model& model) const;
};

struct Select {
  static constexpr const char* kName = "Select";
  Read x;
  Written out;

  static constexpr auto fields() { return std::tuple{Field{"x", &Select::x}, Field{"out", &Select::out}}; }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

struct Head {
  static constexpr const char* kName = "Head";
  Read x;
  MatrixRef weight;
  float softcap;

  static constexpr auto fields() {
    return std::tuple{Field{"x", &Head::x}, Field{"weight", &Head::weight}, Field{"softcap", &Head::softcap}};
  }
  void check(const Model& model) const;
  void run(Program& program) const;
  std::string kind(const Model&) const { return "head"; }
};

struct Output {
  static constexpr const char* kName = "Output";
  Read x;

  static constexpr auto fields() { return std::tuple{Field{"x", &Output::x}}; }
  void check(const Model& model) const;
  void run_row(Program& program, int row) const;
};

// Row ops that the plan adds itself: the step's cosines and sines of one rope table, and the quantised rows of a
// buffer for the matmul that comes next.
struct Angles {
  int table;
  void run_row(Program& program, int row) const;
};

struct Quantize {
  Read x;
  void run_row(Program& program, int row) const;
};

using Op = std::variant<Embed, Input, RmsNorm, LayerNorm, Linear, Rope, KVWrite, Attention, Add, Gated, Route, Experts,
                        Select, Head, Output, Angles, Quantize>;

template <class T>
concept FromPython = requires { T::kName; };
template <class T>
concept RowOp = requires(const T& op, Program& program) { op.run_row(program, 0); };

// Calls visit(number) for each number of a buffer, weight or KV layer in an op's fields.
template <FromPython T, class Visit>
void each_number(const T& op, Visit&& visit) {
  const auto look_at = [&visit](const auto& self, const auto& field) -> void {
    if constexpr (requires { field.index; }) {
      visit(field);
    } else if constexpr (requires { field.has_value(); }) {
      if (field.has_value()) self(self, *field);
    } else if constexpr (requires { field.begin(); }) {
      for (const auto& each : field) self(self, each);
    }
  };
  std::apply([&](auto... field) { (look_at(look_at, op.*field.member), ...); }, T::fields());
}

}  // namespace corral
