"""The GPU check: what only a real GPU can tell, the most important first (`bash bench/gpu_check.sh --help`)."""
