"""A GPU that is not there: training steps on fake CUDA tensors, on any machine with a C++ compiler."""
