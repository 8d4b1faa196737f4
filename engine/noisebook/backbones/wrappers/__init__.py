"""Backbones around another backbone."""
