"""What is found in a PEFT model, and what is refused."""
