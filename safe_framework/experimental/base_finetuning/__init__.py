"""Base fine-tuning (Stage B): the base itself is trained too, where a recipe asks for it."""
