"""What a codec is: one hashed value, schedules, presets, curves. No torch here."""
