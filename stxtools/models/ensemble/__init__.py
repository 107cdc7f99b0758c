"""Members beside the network, and how their out-of-fold predictions are stacked."""
