"""Running a model on a machine: options, devices, memory, attention kernels, offloading, compilation, step cache."""
