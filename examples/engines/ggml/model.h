// A small transformer of Llama's shape: its GGUF file, its tensors, and its graph.
#pragma once

#include <string>
#include <vector>

#include <ggml.h>
#include <gguf.h>

struct Model {
  static constexpr int layers = 6, heads = 8, width = 512, hidden = 1024, vocabulary = 1024;
  // The parts of the graph, in their order: input, layers, output.
  static constexpr int parts = layers + 2;

  gguf_context* file = nullptr;     // metadata of the GGUF file
  ggml_context* tensors = nullptr;  // without memory: see ggml_backend_tensor_alloc

  explicit Model(const std::string& path);
  ~Model();
  Model(const Model&) = delete;

  ggml_tensor* tensor(const std::string& name) const;
  // Bytes from the start of the file to the tensor's first.
  size_t offset(const char* name) const;
  // "blk.3" of "blk.3.ffn_up.weight": the weights that a part of the graph uses.
  static std::string group_of(const std::string& name);
  static std::string group_name(int part);

  // Adds a part of the graph: from token ids (part 0) or hidden states to hidden states or logits.
  ggml_tensor* build(ggml_context* graph, int part, ggml_tensor* x, ggml_tensor* positions) const;
};

// Writes a file with random weights of types Q4_0, Q8_0 and F32.
void write_gguf(const std::string& path, unsigned seed);
