"""Studies: models × data × scores × shares, resumable, on one machine or a cluster."""
