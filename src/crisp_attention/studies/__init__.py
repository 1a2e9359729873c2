"""Many runs: comparing them and saying what was found."""
