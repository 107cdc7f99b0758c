"""The segmentation model S = U(X; theta) and its pseudo-labels."""
