"""A vision-language base from an image encoder and a language model, in the LLaVA form."""
