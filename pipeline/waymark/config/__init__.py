"""The configuration: what may be set, how it is read, what a run recorded."""
