"""What to label next: scores of unlabelled examples, one file each, and their table."""

from laplace_lora.acquisition.bald import bald
from laplace_lora.acquisition.base import Batch
from laplace_lora.acquisition.batch_bald import batch_bald
from laplace_lora.acquisition.entropy import entropy
from laplace_lora.acquisition.table import METHODS, Method, find_method

__all__ = ["METHODS", "Batch", "Method", "bald", "batch_bald", "entropy", "find_method"]
