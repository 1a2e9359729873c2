"""`crisp demo diffusion`: what sparse-linear attention does to a small diffusion transformer."""
