"""`crisp bench`: what sparse attention costs, as ratios to dense attention in the same run."""
