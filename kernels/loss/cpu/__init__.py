"""The segmentation loss on the CPU."""
