"""CUDA graphs, profiler ranges, loading of the extension, atomic writes."""

__version__ = "0.1.0"
