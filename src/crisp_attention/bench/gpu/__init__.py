"""The benchmark of GPUs in one command: tests and measurements, each part in a process of its own, with nothing
installed but what the package itself needs, Triton and pytest."""
