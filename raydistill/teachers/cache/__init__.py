"""A teacher's outputs, computed once with Ray and read by everyone."""
