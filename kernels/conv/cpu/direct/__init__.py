"""Direct convolution: a GEMM micro-kernel that walks over the padded image."""
