"""One fine-tuning run: data, model, Trainer, what it leaves behind."""
