"""The host of any other model: modules that call torch's `scaled_dot_product_attention`, by hooks and a mode."""
