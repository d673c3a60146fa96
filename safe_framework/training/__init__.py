"""Training on the Hugging Face Trainer: the adapter learns, the base's answers are defended."""
