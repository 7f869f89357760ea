"""``python -m laplace_lora.cli``."""

from laplace_lora.cli import main

main()
