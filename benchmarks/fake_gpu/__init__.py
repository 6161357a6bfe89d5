"""Run training steps on fake CUDA tensors, on any machine with a C++ compiler and without a GPU."""
