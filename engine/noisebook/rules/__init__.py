"""Selection rules: how a step's residual becomes tokens, and tokens become noise. One file per rule."""
