"""What CPU kernels are built with: vector programs, compilation, threads, memory, the GEMM micro-kernel."""
