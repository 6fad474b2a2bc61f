"""How a model is run on a machine: options, devices, memory, kernels, offloading, compilation, step cache."""
