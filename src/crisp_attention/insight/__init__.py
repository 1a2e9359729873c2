"""What attention did: measuring it, and a profile of where sparsity is safe."""
