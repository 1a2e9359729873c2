"""Many runs: planning and carrying out, comparing, reporting."""
