"""`crisp sparsefinder`: fitting layouts that predict which pairs entmax connects."""
