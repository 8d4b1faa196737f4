"""The `.nbk` file: container, entropy coding, runs of tokens. No torch here."""
