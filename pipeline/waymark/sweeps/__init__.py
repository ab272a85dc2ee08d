"""Many runs: a sweep and its trials."""
