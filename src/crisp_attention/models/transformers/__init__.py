"""The host of Hugging Face transformers: all of Crisp below runs that imports transformers or PEFT."""
