"""The report of a study: a page, tables, figures and a summary."""
