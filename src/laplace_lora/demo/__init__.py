"""The demo: a real pretrained encoder, tuned by LoRA until over-confident, then given a Laplace posterior."""

from laplace_lora.demo.run import DemoConfig, SeedResult, run_seed, small_config
from laplace_lora.demo.summary import seeds_table, write_results

__all__ = ["DemoConfig", "SeedResult", "run_seed", "seeds_table", "small_config", "write_results"]
