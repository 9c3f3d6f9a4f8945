#include "model.h"

#include <cmath>
#include <random>
#include <stdexcept>

std::string Model::group_name(int part) {
  if (part == 0) return "token_embd";
  return part <= layers ? "blk." + std::to_string(part - 1) : "output";
}

std::string Model::group_of(const std::string& name) {
  if (name.compare(0, 4, "blk.") == 0) return name.substr(0, name.find('.', 4));
  return name.compare(0, 6, "output") == 0 ? "output" : "token_embd";
}

Model::Model(const std::string& path) {
  gguf_init_params params = {};
  params.no_alloc = true;
  params.ctx = &tensors;
  file = gguf_init_from_file(path.c_str(), params);
  if (!file) throw std::runtime_error("ggml cannot read " + path);
}

Model::~Model() {
  ggml_free(tensors);
  gguf_free(file);
}

ggml_tensor* Model::tensor(const std::string& name) const {
  ggml_tensor* found = ggml_get_tensor(tensors, name.c_str());
  if (!found) throw std::runtime_error("the file has no tensor " + name);
  return found;
}

size_t Model::offset(const char* name) const {
  return gguf_get_data_offset(file) + gguf_get_tensor_offset(file, gguf_find_tensor(file, name));
}

ggml_tensor* Model::build(ggml_context* g, int part, ggml_tensor* x, ggml_tensor* positions) const {
  const auto weight = [&](const std::string& name) {
    return tensor(group_name(part) + name + ".weight");
  };
  const auto norm = [&](const std::string& name, ggml_tensor* value) {
    return ggml_mul(g, ggml_rms_norm(g, value, 1e-5f), weight(name));
  };
  if (part == 0) return ggml_get_rows(g, weight(""), x);
  if (part > layers) return ggml_mul_mat(g, weight(""), norm("_norm", x));

  const int64_t count = x->ne[1], size = width / heads;
  ggml_tensor* in = norm(".attn_norm", x);
  const auto split = [&](const std::string& name) {
    return ggml_reshape_3d(g, ggml_mul_mat(g, weight(name), in), size, heads, count);
  };
  const auto turn = [&](ggml_tensor* value) {  // head by head, with positions
    return ggml_permute(g, ggml_rope(g, value, positions, (int)size, 0), 0, 2, 1, 3);
  };
  ggml_tensor* q = turn(split(".attn_q"));
  ggml_tensor* k = turn(split(".attn_k"));
  ggml_tensor* v = ggml_cont(g, ggml_permute(g, split(".attn_v"), 1, 2, 0, 3));
  ggml_tensor* scores = ggml_scale(g, ggml_mul_mat(g, k, q), 1.0f / std::sqrt((float)size));
  scores = ggml_soft_max(g, ggml_diag_mask_inf(g, scores, 0));
  ggml_tensor* mixed = ggml_permute(g, ggml_mul_mat(g, v, scores), 0, 2, 1, 3);
  mixed = ggml_cont_2d(g, mixed, width, count);
  x = ggml_add(g, x, ggml_mul_mat(g, weight(".attn_output"), mixed));

  in = norm(".ffn_norm", x);
  ggml_tensor* gate = ggml_silu(g, ggml_mul_mat(g, weight(".ffn_gate"), in));
  ggml_tensor* up = ggml_mul_mat(g, weight(".ffn_up"), in);
  return ggml_add(g, x, ggml_mul_mat(g, weight(".ffn_down"), ggml_mul(g, gate, up)));
}

void write_gguf(const std::string& path, unsigned seed) {
  const size_t memory = size_t{64} << 20;
  ggml_context* tensors = ggml_init({memory, nullptr, false});
  gguf_context* file = gguf_init_empty();
  gguf_set_val_str(file, "general.architecture", "llama");
  std::mt19937 random(seed);
  const auto add = [&](const std::string& name, ggml_type type, int64_t columns, int64_t rows) {
    std::normal_distribution<float> values(rows == 1 ? 1.0f : 0.0f,
                                           1.0f / std::sqrt((float)columns));
    std::vector<float> full(static_cast<size_t>(columns * rows));
    for (float& value : full) value = values(random);
    ggml_tensor* tensor = ggml_new_tensor_2d(tensors, type, columns, rows);
    ggml_set_name(tensor, (name + ".weight").c_str());
    ggml_quantize_chunk(type, full.data(), tensor->data, 0, rows, columns, nullptr);
    gguf_add_tensor(file, tensor);
  };
  add("token_embd", GGML_TYPE_Q8_0, Model::width, Model::vocabulary);
  for (int layer = 0; layer < Model::layers; layer++) {
    const std::string name = Model::group_name(layer + 1);
    add(name + ".attn_norm", GGML_TYPE_F32, Model::width, 1);
    for (const char* own : {".attn_q", ".attn_k", ".attn_v", ".attn_output"}) {
      add(name + own, GGML_TYPE_Q4_0, Model::width, Model::width);
    }
    add(name + ".ffn_norm", GGML_TYPE_F32, Model::width, 1);
    add(name + ".ffn_gate", GGML_TYPE_Q8_0, Model::width, Model::hidden);
    add(name + ".ffn_up", GGML_TYPE_Q8_0, Model::width, Model::hidden);
    add(name + ".ffn_down", GGML_TYPE_Q4_0, Model::hidden, Model::width);
  }
  add("output_norm", GGML_TYPE_F32, Model::width, 1);
  add("output", GGML_TYPE_Q8_0, Model::width, Model::vocabulary);
  const bool written = gguf_write_to_file(file, path.c_str(), false);
  gguf_free(file);
  ggml_free(tensors);
  if (!written) throw std::runtime_error("ggml cannot write " + path);
}
