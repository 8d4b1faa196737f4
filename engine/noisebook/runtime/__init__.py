"""CUDA graphs, profiler ranges, loading of the extension, atomic writes, hashes of files."""

__version__ = "0.1.0"
