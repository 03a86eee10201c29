"""The tools of CPU kernels: vector programs, compilation, threads, memory, the GEMM micro-kernel."""
