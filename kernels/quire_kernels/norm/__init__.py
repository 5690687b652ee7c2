"""Root-mean-square normalisation, plain and fused with the residual addition."""
