"""The tools of CUDA kernels: compilation by NVRTC, launches, checks of arrays."""
