"""One fine-tuning run: data, model, Trainer, results."""
