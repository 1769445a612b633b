"""One file per step, in the order their `down_revision` says."""
