"""Data sets and prompts: what the experiments and the demo are run on."""

from laplace_lora.tasks.ambiguous_reviews import LABEL_NAMES, Review, make_reviews, make_splits

__all__ = ["LABEL_NAMES", "Review", "make_reviews", "make_splits"]
