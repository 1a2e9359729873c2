"""The host of Hugging Face transformers: below `runs`, the only part of Crisp that imports transformers or PEFT."""
