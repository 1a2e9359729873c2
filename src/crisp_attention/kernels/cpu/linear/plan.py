"""What compiled code and its callers both know."""

# numbers of a sum that are added up at a time: they stay in the first cache
STRETCH = 512
# feature maps; the last for features that were computed elsewhere
SOFTMAX, ELU, RELU, GIVEN = range(4)
# a share of a sum below which it is added up by itself, and not left of the sum of all
LEAST = 2.0**-20
