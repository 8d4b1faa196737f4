"""The loop: encode and decode are the same walk."""
