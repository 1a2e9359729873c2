"""Many runs, one study: what to run, who runs it, and that none is lost or run twice."""
