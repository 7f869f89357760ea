"""``laplace-lora bench``: every method under one protocol, on any base model."""

from laplace_lora.bench.run import bench
from laplace_lora.bench.settings import BENCH_PRESETS, BenchConfig, BenchPreset, bench_preset
from laplace_lora.bench.tables import summary
from laplace_lora.methods.table import METHODS

__all__ = ["BENCH_PRESETS", "METHODS", "BenchConfig", "BenchPreset", "bench", "bench_preset", "summary"]
