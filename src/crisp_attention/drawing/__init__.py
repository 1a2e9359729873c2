"""The look of all figures: one palette, one style, one way of drawing a map of layers and heads."""
