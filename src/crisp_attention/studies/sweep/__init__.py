"""Many runs, one study: planning, queueing and running, so that no run is lost or done twice."""
