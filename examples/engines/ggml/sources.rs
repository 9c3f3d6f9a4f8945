//! Empty: this package only names ggml's sources.
