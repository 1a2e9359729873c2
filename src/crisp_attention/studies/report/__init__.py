"""What a study says, as a page, tables, figures and a summary."""
