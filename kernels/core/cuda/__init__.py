"""What CUDA kernels are built with: compilation by NVRTC, launches, checks of arrays."""
