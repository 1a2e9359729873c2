"""The host of diffusers: the transformers of diffusion pipelines, their configs and their weights."""
