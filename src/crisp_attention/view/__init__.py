"""`crisp view`: the attention of a text as a page, what each method keeps and what it drops."""
