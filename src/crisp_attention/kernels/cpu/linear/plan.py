"""What compiled code and its callers both know."""

# numbers of a sum that are added up at a time: they stay in the first cache
STRETCH = 512
# feature maps; the last for features that were computed elsewhere
SOFTMAX, ELU, RELU, GIVEN = range(4)
