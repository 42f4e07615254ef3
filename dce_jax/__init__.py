"""Dynamic channel execution in JAX: train compact networks directly, on smaller tensors."""
