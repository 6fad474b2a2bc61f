"""DeepSpeed's ZeRO-1 and ZeRO-2: each process keeps a share of the optimizer, with ZeRO-2 of the gradients too."""
