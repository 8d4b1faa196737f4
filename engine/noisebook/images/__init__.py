"""Pictures and files: reading and writing them, metrics, targets (a rate or a quality asked for)."""
